// Looks at pages as a person would, in a real browser: `node look.mjs <job.json>`.
//
// A job names the pages (files or addresses), where screenshots go and what kind of page each is. Whatever is wrong is
// thrown; what was seen is printed as one line of JSON a page.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';

const job = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const axe = readFileSync(createRequire(import.meta.url).resolve('axe-core/axe.min.js'), 'utf8');
const browser = await chromium.launch({
  executablePath: job.chromium,
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  for (const one of job.pages) {
    for (const [name, width, height, colorScheme] of [['desktop', 1280, 900, 'light'], ['desktop-dark', 1280, 900, 'dark'], ['phone', 390, 844, 'light'], ['phone-dark', 390, 844, 'dark']]) {
      const seen = await look(one, name, { viewport: { width, height }, colorScheme });
      console.log(JSON.stringify({ page: one.name, as: name, ...seen }));
    }
    if (one.kind === 'report') await withoutScript(one);
  }
} finally {
  await browser.close();
}

async function open(one, options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const trouble = [];
  const address = one.url || pathToFileURL(one.file).href;
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) trouble.push('console: ' + message.text()); });
  page.on('pageerror', (error) => trouble.push('error: ' + error.message));
  page.on('dialog', (dialog) => { if (!one.dialogs) trouble.push('dialog: ' + dialog.message()); dialog.accept(); });
  page.on('request', (request) => {
    const url = request.url();
    const own = one.url ? url.startsWith(new URL(one.url).origin + '/') : url.split('#')[0] === address.split('#')[0];
    if (!own && !url.startsWith('data:')) trouble.push('request: ' + url);
  });
  await page.goto(address);
  return { context, page, trouble };
}

async function look(one, as, options) {
  const { context, page, trouble } = await open(one, options);
  const shot = (what) => page.screenshot({ path: join(job.screens, [one.name, as, what].filter(Boolean).join('-') + '.png'), fullPage: what === 'whole' });
  await page.waitForFunction(() => document.documentElement.classList.contains('js'));
  await shot('');

  // Nothing is wider than the screen.
  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0, `${one.name} ${as}: ${overflow}px too wide`);

  // Every picture is drawn, with more than one colour, once it was scrolled to.
  for (const box of await page.locator('[data-chart=timeline], [data-chart=rates]').all()) {
    await box.scrollIntoViewIfNeeded();
    await box.locator('canvas').waitFor({ timeout: 60000 });
    const colors = await box.locator('canvas').evaluate((canvas) => {
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const seen = new Set();
      for (let i = 0; i < data.length; i += 4) if (data[i + 3] === 255) seen.add(data[i] * 65536 + data[i + 1] * 256 + data[i + 2]);
      return seen.size;
    });
    assert.ok(colors > 2, `${one.name} ${as}: a picture has ${colors} colours`);
  }
  const pictures = await page.locator('.uplot').count();

  const bans = page.locator('#ban-rows > tbody');
  const all = await bans.count();
  if (all > 0) {
    // Sorted by a column of numbers, downwards first; then upwards.
    const head = page.locator('#ban-rows thead th', { hasText: /^(Stopped|Sent)/ });
    const column = await head.evaluate((th) => th.cellIndex);
    const values = () => bans.evaluateAll((bodies, column) => bodies.map((body) => Number(body.rows[0].cells[column].dataset.value)), column);
    await head.locator('button').click();
    assert.equal(await head.getAttribute('aria-sort'), 'descending');
    assert.deepEqual(await values(), (await values()).slice().sort((a, b) => b - a));
    await head.locator('button').press('Enter');
    assert.equal(await head.getAttribute('aria-sort'), 'ascending');
    assert.deepEqual(await values(), (await values()).slice().sort((a, b) => a - b));

    // Searched, and filtered: words of the folded evidence count too.
    const tools = page.locator('.tools[data-for=ban-rows]');
    const visible = () => bans.evaluateAll((bodies) => bodies.filter((body) => !body.hidden).length);
    await tools.locator('input').fill(one.search);
    assert.equal(await visible(), one.found, `${one.name}: search for ${one.search}`);
    assert.match(await tools.locator('.shown').textContent(), new RegExp(`^${one.found} of ${all.toLocaleString('en-US')} shown$`));
    await tools.locator('input').fill('');
    const rule = await tools.locator('select[name=rule] option').nth(1).getAttribute('value');
    await tools.locator('select[name=rule]').selectOption(rule);
    const filtered = await bans.evaluateAll((bodies) => bodies.filter((body) => !body.hidden).map((body) => body.dataset.rule));
    assert.ok(filtered.length > 0 && filtered.every((name) => name === rule));
    await tools.locator('select[name=rule]').selectOption('');
    assert.equal(await visible(), all);

    // With the keyboard alone: from the first ban to its evidence, and on to the client.
    const first = bans.first();
    await first.locator('.open').focus();
    await page.keyboard.press('Enter');
    assert.equal(await first.locator('.open').getAttribute('aria-expanded'), 'true');
    assert.ok(await first.locator('.more').isVisible());
    await first.scrollIntoViewIfNeeded();
    await shot('evidence');
    await page.keyboard.press('Tab');
    const href = await page.evaluate(() => document.activeElement.getAttribute('href'));
    assert.ok(href.startsWith('#client-'), href);
    await page.keyboard.press('Enter');
    await page.waitForFunction((id) => document.getElementById(id).open, href.slice(1));
    const focused = await page.evaluate(() => document.activeElement.tagName + ' ' + document.activeElement.parentNode.id);
    assert.equal(focused, 'SUMMARY ' + href.slice(1));
    await page.locator('details[open] [data-chart=activity] canvas').first().waitFor({ timeout: 60000 });
    await shot('client');
    await page.locator('[data-unfold]').first().click();
  }

  // What a screen reader needs, with everything unfolded.
  await page.evaluate(() => document.querySelectorAll('details').forEach((one, at) => { one.open = at < 5; }));
  await page.evaluate(axe);
  const result = await page.evaluate(() => window.axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }));
  const violations = result.violations.map((one) => `${one.id}: ${one.help}: ${one.nodes.slice(0, 3).map((node) => node.html.slice(0, 160)).join(' | ')}`);
  assert.deepEqual(violations, [], `${one.name} ${as}`);
  await shot('whole');

  // Text from logs is text: no element that we did not write, and nothing of theirs ran.
  const foreign = await page.evaluate(() => {
    const ours = new Set('HTML HEAD META TITLE LINK STYLE SCRIPT BODY A DIV HEADER FOOTER MAIN NAV SECTION H1 H2 H3 P UL LI DL DT DD I BR SPAN BDI CODE STRONG TABLE THEAD TBODY TR TH TD BUTTON LABEL INPUT SELECT OPTION OUTPUT NOSCRIPT DETAILS SUMMARY CANVAS FORM'.split(' '));
    const all = Array.from(document.querySelectorAll('*'));
    return all.filter((node) => !ours.has(node.tagName) || Array.from(node.attributes).some((attribute) => /^on/i.test(attribute.name)))
      .map((node) => node.outerHTML.slice(0, 200))
      .concat(document.scripts.length === 2 ? [] : ['scripts: ' + document.scripts.length])
      .concat(window.hacked === undefined ? [] : ['hacked']);
  });
  assert.deepEqual(foreign, []);
  assert.deepEqual(trouble, [], `${one.name} ${as}`);
  const opened = await page.evaluate(() => Math.round(performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd));
  await context.close();
  return { bans: all, pictures, opened_ms: opened };
}

// Without a script, everything but the pictures is there.
async function withoutScript(one) {
  const { context, page, trouble } = await open(one, { javaScriptEnabled: false, viewport: { width: 1280, height: 900 } });
  const more = page.locator('#ban-rows .more');
  assert.ok(await more.count() > 0);
  assert.ok(await more.first().isVisible());
  assert.deepEqual(trouble, []);
  await context.close();
}
