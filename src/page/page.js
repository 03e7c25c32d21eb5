// Draws the pictures and makes tables sortable and searchable. Everything is on the page without it, but the pictures.
(function () {
  'use strict';
  document.documentElement.classList.add('js');
  const data = JSON.parse(document.getElementById('data').textContent);
  const all = (selector, from) => Array.from((from || document).querySelectorAll(selector));
  const count = (n) => Math.round(n).toLocaleString('en-US');
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
  const two = (n) => String(n).padStart(2, '0');
  const day = (s) => { const d = new Date(s * 1000); return d.getUTCFullYear() + '-' + two(d.getUTCMonth() + 1) + '-' + two(d.getUTCDate()); };
  const clock = (s) => { const d = new Date(s * 1000); return two(d.getUTCHours()) + ':' + two(d.getUTCMinutes()); };
  const FONT = '12px system-ui, sans-serif';

  // ---- Pictures ----

  // Each picture is a function that draws into a box; all are drawn again when the colours or the width change.
  const pictures = [];
  function picture(box, draw) {
    let chart = null, width = 0;
    const again = () => {
      width = Math.floor(box.clientWidth);
      if (width < 40) return;
      if (chart) chart.destroy();
      chart = draw(width);
    };
    pictures.push(again);
    again();
    if (window.ResizeObserver) new ResizeObserver(() => { if (Math.floor(box.clientWidth) !== width) again(); }).observe(box);
  }
  const redraw = () => pictures.forEach((again) => again());
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);
  window.matchMedia('print').addEventListener('change', redraw);
  window.addEventListener('beforeprint', redraw);
  window.addEventListener('afterprint', redraw);

  const timeAxis = () => ({
    stroke: color('soft'), font: FONT, grid: { show: false }, ticks: { stroke: color('line'), width: 1 }, space: 80, incrs: MINUTES,
    values: (u, splits) => splits.map((s, i) => (i === 0 || day(s) !== day(splits[i - 1]) ? day(s).slice(5) + ' ' + clock(s) : clock(s))),
  });
  const MINUTES = [1, 2, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080, 43200, 129600].map((n) => n * 60);
  const utc = (s) => uPlot.tzDate(new Date(s * 1000), 'Etc/UTC');
  const numberAxis = () => ({
    stroke: color('soft'), font: FONT, grid: { stroke: color('line'), width: 1 }, ticks: { show: false }, size: 56,
    values: (u, splits) => splits.map((n) => (n >= 1e6 ? n / 1e6 + ' M' : n >= 1e4 ? n / 1e3 + ' k' : count(n))),
  });
  // Stacked columns, to the pixel: where bars only cover each other, the colours below shine through their edges.
  const silent = { paths: () => null, points: { show: false } };
  function columns(u, lists, step, end) {
    const { ctx, bbox } = u, ratio = devicePixelRatio || 1;
    const xs = u.data[0];
    ctx.save();
    for (let i = 0; i < xs.length; i++) {
      const x0 = Math.round(u.valToPos(xs[i], 'x', true));
      const x1 = Math.round(u.valToPos(Math.min(xs[i] + step, end), 'x', true));
      const width = Math.max(1, x1 - x0 - (x1 - x0 > 4 * ratio ? Math.round(ratio) : 0));
      let sum = 0, y0 = Math.round(bbox.top + bbox.height);
      for (const [name, list] of lists) {
        if (!list[i]) continue;
        sum += list[i];
        // One request of thousands is still one: a pixel at least.
        const y1 = Math.min(Math.round(u.valToPos(sum, 'y', true)), y0 - 1);
        ctx.fillStyle = name;
        ctx.fillRect(x0, y1, width, y0 - y1);
        y0 = y1;
      }
    }
    ctx.restore();
  }
  const sum = (lists) => lists[0].map((_, i) => lists.reduce((all, list) => all + list[i], 0));

  // Bars for bans, on as few lanes as they need.
  const LANES_MAX = 10;
  function lanes(bans, end) {
    const free = [];
    const placed = [];
    for (const ban of bans.slice().sort((a, b) => a.from - b.from || a.until - b.until)) {
      if (ban.from >= end) continue;
      let lane = free.findIndex((until) => until <= ban.from);
      if (lane < 0) lane = free.push(0) - 1;
      if (lane >= LANES_MAX) return null;
      free[lane] = ban.until;
      placed.push({ lane, ban });
    }
    return { placed, count: free.length };
  }

  function timeline(box) {
    const line = data.timeline;
    const steps = line.allowed.length;
    if (!steps) return;
    const xs = line.allowed.map((_, i) => line.from_s + i * line.step_s);
    const end = line.from_s + steps * line.step_s;
    const bans = data.lines.filter((one) => one.type === 'ban').map((one) => ({
      from: Date.parse(one.time) / 1000, until: Date.parse(one.until) / 1000, client: one.client, rule: one.rule,
    }));
    const cut = data.bans_cut > 0;
    const packed = cut ? null : lanes(bans, end);
    const laneHeight = 19;
    const reserved = packed ? packed.count * laneHeight + (packed.count ? 10 : 0) : 0;
    const readout = document.getElementById(box.dataset.readout);
    const sums = sum([line.allowed, line.blocked, line.stopped]);
    const highest = Math.max(1, ...sums);
    picture(box, (width) => {
      const height = 250 + reserved;
      const options = {
        width, height, tzDate: utc, legend: { show: false }, cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
        padding: [reserved + 8, packed ? 24 : 0, 0, 12],
        scales: {
          x: { time: true, range: [line.from_s, end] }, y: { range: [0, highest * 1.05] },
          bans: { range: [0, Math.max(1, ...line.bans) * 1.05] },
        },
        axes: [timeAxis(), numberAxis()],
        series: [{}, silent],
        hooks: {
          drawAxes: [(u) => columns(u, [[color('allowed'), line.allowed], [color('blocked'), line.blocked], [color('stopped'), line.stopped]], line.step_s, end)],
          draw: [(u) => drawBans(u, packed, end)],
          setCursor: [(u) => say(u)],
        },
      };
      const rows = [xs, sums];
      if (!packed) {
        options.series.push({ scale: 'bans', stroke: color('mark'), width: 1.5, paths: uPlot.paths.stepped({ align: 1 }), points: { show: false } });
        options.axes.push({ ...numberAxis(), scale: 'bans', side: 1, grid: { show: false } });
        rows.push(line.bans);
      }
      return new uPlot(options, rows, box);
    });
    function drawBans(u, packed, end) {
      if (!packed) return;
      const ctx = u.ctx, ratio = devicePixelRatio || 1;
      ctx.save();
      ctx.font = 11 * ratio + 'px system-ui, sans-serif';
      ctx.textBaseline = 'middle';
      ctx.textAlign = 'left';
      for (const { lane, ban } of packed.placed) {
        const x0 = u.valToPos(Math.max(ban.from, line.from_s), 'x', true);
        const x1 = u.valToPos(Math.min(ban.until, end), 'x', true);
        const y = (4 + lane * laneHeight) * ratio;
        ctx.fillStyle = color('stopped');
        ctx.fillRect(x0, y, Math.max(x1 - x0, 2 * ratio), 5 * ratio);
        ctx.fillRect(x0, y, 2 * ratio, 11 * ratio);
        const label = ban.client.replace(/\/(32|64|128)$/, '');
        const fits = x1 - x0 > ctx.measureText(label).width + 10 * ratio;
        if (fits) { ctx.fillStyle = color('soft'); ctx.fillText(label, x0 + 5 * ratio, y + 11 * ratio); }
      }
      ctx.restore();
    }
    function say(u) {
      const i = u.cursor.idx;
      if (i == null || u.cursor.left < 0) { readout.textContent = ''; return; }
      const from = xs[i];
      readout.textContent = day(from) + ' ' + clock(from) + ' UTC: ' + count(line.allowed[i]) + ' allowed, ' + count(line.blocked[i])
        + ' blocked, ' + count(line.stopped[i]) + (data.live ? ' during bans, ' : ' would be stopped, ') + count(line.bans[i]) + ' bans in force';
    }
  }

  function rates(box) {
    const rate = data.rates[Number(box.dataset.rate)];
    const bins = rate.bins;
    const level = (n) => (n ? Math.log10(n) + 0.35 : null);
    const xs = bins.map((_, i) => i);
    const at = bins.findIndex((bin) => bin[0] === rate.limit);
    const below = bins.map((bin, i) => (i < at ? level(bin[2]) : null));
    const reached = bins.map((bin, i) => (i >= at ? level(bin[2]) : null));
    const top = Math.max(1, ...bins.map((bin) => level(bin[2]) || 0));
    const decades = [];
    for (let n = 0; n + 0.35 <= top + 0.2; n++) decades.push(n + 0.35);
    const marks = [];
    bins.forEach((bin, i) => { if (/^1?[0]*$|^10*$/.test(String(bin[0])) && Math.abs(i - at) > 1) marks.push(i); });
    picture(box, (width) => new uPlot({
      width, height: 150, legend: { show: false }, cursor: { show: false }, padding: [18, 8, 0, 0],
      scales: { x: { time: false, range: [-0.6, bins.length - 0.4] }, y: { range: [0, top * 1.08] } },
      axes: [
        { stroke: color('soft'), font: FONT, grid: { show: false }, ticks: { stroke: color('line'), width: 1 }, splits: () => marks, values: (u, splits) => splits.map((i) => count(bins[i][0])), size: 28 },
        { stroke: color('soft'), font: FONT, grid: { stroke: color('line'), width: 1 }, ticks: { show: false }, splits: () => decades, values: (u, splits) => splits.map((n) => count(Math.pow(10, n - 0.35))), size: 50 },
      ],
      series: [{}, bar('allowed'), bar('stopped')],
      hooks: {
        draw: [(u) => {
          const ctx = u.ctx, ratio = devicePixelRatio || 1;
          const x = Math.round(u.valToPos(at - 0.5, 'x', true));
          ctx.save();
          ctx.strokeStyle = color('mark');
          ctx.lineWidth = 1.5 * ratio;
          ctx.setLineDash([4 * ratio, 3 * ratio]);
          ctx.beginPath(); ctx.moveTo(x, u.bbox.top - 2 * ratio); ctx.lineTo(x, u.bbox.top + u.bbox.height); ctx.stroke();
          ctx.fillStyle = color('ink');
          ctx.font = '600 ' + 12 * ratio + 'px system-ui, sans-serif';
          ctx.textBaseline = 'bottom';
          const label = 'limit ' + count(rate.limit);
          const right = x + ctx.measureText(label).width / 2 > u.bbox.left + u.bbox.width;
          ctx.textAlign = right ? 'right' : x - ctx.measureText(label).width / 2 < u.bbox.left ? 'left' : 'center';
          ctx.fillText(label, x, u.bbox.top - 3 * ratio);
          ctx.restore();
        }],
      },
    }, [xs, below, reached], box));
    function bar(name) {
      return { fill: color(name), stroke: color(name), width: 0, paths: uPlot.paths.bars({ size: [0.86, 40] }), points: { show: false } };
    }
  }

  function activity(box) {
    const line = data.activity[box.dataset.client];
    if (!line || box.firstChild) return;
    const xs = line.allowed.map((_, i) => line.from_s + i * line.step_s);
    const end = line.from_s + xs.length * line.step_s;
    const sums = sum([line.allowed, line.blocked]);
    const bans = data.lines.filter((one) => one.type === 'ban' && one.client === box.dataset.client);
    picture(box, (width) => new uPlot({
      width, height: 130, tzDate: utc, legend: { show: false }, cursor: { show: false }, padding: [12, 24, 0, 12],
      scales: { x: { time: true, range: [line.from_s, end] }, y: { range: [0, Math.max(1, ...sums) * 1.05] } },
      axes: [timeAxis(), numberAxis()],
      series: [{}, silent],
      hooks: {
        drawAxes: [(u) => columns(u, [[color('allowed'), line.allowed], [color('blocked'), line.blocked]], line.step_s, end)],
        draw: [(u) => {
          const ratio = devicePixelRatio || 1;
          u.ctx.save();
          u.ctx.fillStyle = color('stopped');
          for (const ban of bans) {
            const x0 = u.valToPos(Math.max(Date.parse(ban.time) / 1000, line.from_s), 'x', true);
            const x1 = u.valToPos(Math.min(Date.parse(ban.until) / 1000, end), 'x', true);
            if (x1 > u.bbox.left) u.ctx.fillRect(x0, 2 * ratio, Math.max(x1 - x0, 2 * ratio), 5 * ratio);
          }
          u.ctx.restore();
        }],
      },
    }, [xs, sums], box));
  }

  all('[data-chart=timeline]').forEach(timeline);
  // Pictures that nobody has scrolled to yet cost nothing.
  const far = window.IntersectionObserver && new IntersectionObserver((seen) => {
    seen.filter((one) => one.isIntersecting).forEach((one) => { far.unobserve(one.target); rates(one.target); });
  }, { rootMargin: '600px' });
  const waiting = all('[data-chart=rates]');
  waiting.forEach((box) => (far ? far.observe(box) : rates(box)));
  window.addEventListener('beforeprint', () => waiting.forEach((box) => { if (far && !box.firstChild) { far.unobserve(box); rates(box); } }));

  // ---- Tables ----

  all('table[data-sort]').forEach((table) => {
    all('thead th[data-key]', table).forEach((head) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener('click', () => {
        const column = Array.from(head.parentNode.children).indexOf(head);
        const numbers = head.dataset.key === 'number';
        const up = head.getAttribute('aria-sort') ? head.getAttribute('aria-sort') !== 'ascending' : !numbers;
        all('th', head.parentNode).forEach((other) => other.removeAttribute('aria-sort'));
        head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
        const key = (body) => {
          const cell = body.rows[0].cells[column];
          const value = cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value;
          return numbers ? Number(value) : value;
        };
        const bodies = Array.from(table.tBodies).map((body) => [key(body), body]);
        bodies.sort(([a], [b]) => (numbers ? a - b : a < b ? -1 : a > b ? 1 : 0) * (up ? 1 : -1));
        table.append(...bodies.map(([, body]) => body));
      });
    });
  });

  function fold(row, open) {
    row.querySelector('.open').setAttribute('aria-expanded', String(open));
    row.nextElementSibling.toggleAttribute('data-folded', !open);
  }
  document.addEventListener('click', (event) => {
    const button = event.target.closest('.open');
    if (button) fold(button.closest('tr'), button.getAttribute('aria-expanded') !== 'true');
  });

  // A search looks at everything in a row, folded or not.
  all('.tools').forEach((tools) => {
    const target = document.getElementById(tools.dataset.for);
    const items = target.tagName === 'TABLE' ? () => Array.from(target.tBodies) : () => all(':scope > details', target);
    const texts = new Map(items().map((item) => [item, item.textContent.toLowerCase()]));
    const search = tools.querySelector('input[type=search]');
    const selects = all('select', tools);
    const shown = tools.querySelector('.shown');
    const update = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let visible = 0;
      for (const [item, text] of texts) {
        const fits = words.every((word) => text.includes(word)) && selects.every((select) => !select.value || item.dataset[select.name] === select.value);
        item.hidden = !fits;
        visible += fits ? 1 : 0;
      }
      shown.textContent = visible === texts.size ? count(visible) + ' shown' : count(visible) + ' of ' + count(texts.size) + ' shown';
    };
    search.addEventListener('input', update);
    selects.forEach((select) => select.addEventListener('change', update));
    const unfold = tools.querySelector('[data-unfold]');
    if (unfold) unfold.addEventListener('click', () => {
      const open = unfold.getAttribute('aria-pressed') !== 'true';
      unfold.setAttribute('aria-pressed', String(open));
      items().forEach((body) => fold(body.rows[0], open));
    });
    update();
  });

  // ---- Clients ----

  all('details.client').forEach((details) => details.addEventListener('toggle', () => {
    if (details.open) all('[data-chart=activity]', details).forEach(activity);
  }));
  function follow() {
    const target = location.hash.startsWith('#client-') && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    target.hidden = false;
    target.open = true;
    target.scrollIntoView();
    target.querySelector('summary').focus({ preventScroll: true });
  }
  window.addEventListener('hashchange', follow);
  follow();

  // ---- Live ----

  const live = data.live;
  if (live) {
    const stale = document.getElementById('stale');
    const busy = () => all('.open[aria-expanded=true], details[open]').length > 0 || all('input').some((input) => input.value) || (document.activeElement && document.activeElement !== document.body);
    const left = (until) => {
      const minutes = Math.max(0, Math.ceil((until - Date.now() / 1000) / 60));
      return (minutes >= 60 ? Math.floor(minutes / 60) + 'h ' : '') + (minutes % 60) + 'm';
    };
    const tick = () => all('[data-until]').forEach((cell) => { cell.textContent = left(Number(cell.dataset.until)); });
    if (live.ticking) { tick(); setInterval(tick, 15000); }
    setInterval(() => {
      fetch('version', { cache: 'no-store' }).then((answer) => answer.text()).then((version) => {
        if (version === live.version) return;
        if (busy()) stale.hidden = false; else location.reload();
      }).catch(() => { stale.hidden = false; });
    }, live.poll_ms);
    stale.querySelector('button').addEventListener('click', () => location.reload());
    all('form[data-confirm]').forEach((form) => form.addEventListener('submit', (event) => {
      if (!window.confirm(form.dataset.confirm)) event.preventDefault();
    }));
  }
})();
