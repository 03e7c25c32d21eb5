"""Finds what no linter looks for here: parameters, conditions and outputs that nobody uses, and documentation that points
beside its target.

A reference in a document says a file, a line, and what stands in that line:

    [`template.yaml:12` `Rules:`](template.yaml#L12)

Lines move with every change above them. `infra/check --fix` moves the references after them; without it, one whose line is
out of sight of what it means is a finding, and so is one that means nothing any more.
"""

import logging
import re
import sys
from pathlib import Path

from samcli.yamlhelper import yaml_parse

from plain import plain

HERE = Path(__file__).parent
LINES_IN_SIGHT = 30  # what a reader who follows a link sees
logging.disable()  # the transform says much that is for its developers
TEMPLATES = ("template.yaml", "example-api/template.yaml")
DOCUMENTS = [HERE / "README.md"]
REFERENCE = re.compile(r"\[`([\w./-]+):(\d+)` `([^`]+)`\]\(([\w./-]+)#L(\d+)\)")


def unused_outputs():
    """An output is for somebody: a document that says what for, or a template that takes it as a parameter."""
    text = "".join(document.read_text() for document in DOCUMENTS)
    for template in TEMPLATES:
        for output in yaml_parse((HERE / template).read_text())["Outputs"]:
            if f"`{output}`" not in text:
                yield f"{template}: nobody uses the output `{output}`; infra/README.md does not say what it is for"


def unused_parameters():
    """The linters give up on a template with a transform."""
    for template in TEMPLATES:
        tree = yaml_parse((HERE / template).read_text())
        used = set(names(tree["Conditions"])) | set(names(tree.get("Rules", {}))) | set(names(tree.get("Globals", {})))
        used |= set(names(tree["Resources"])) | set(names(tree["Outputs"]))
        for kind in ("Parameters", "Conditions"):
            for name in tree[kind]:
                if name not in used:
                    yield f"{template}: nobody uses `{name}` of `{kind}`"


def names(tree):
    """What a part of a template refers to: by `Ref`, in a `Fn::Sub`, or as a condition."""
    if isinstance(tree, list):
        for item in tree:
            yield from names(item)
    if not isinstance(tree, dict):
        return
    for key, value in tree.items():
        if key in ("Ref", "Condition") and isinstance(value, str):
            yield value
        elif key == "Fn::If":
            yield value[0]
        elif key == "Fn::Sub":
            yield from re.findall(r"\$\{([\w:]+)", value if isinstance(value, str) else value[0])
        yield from names(value)


def one_partition():
    """There are `aws-cn` and `aws-us-gov` too."""
    for template in TEMPLATES:
        for number, line in enumerate((HERE / template).read_text().splitlines(), 1):
            if "arn:aws:" in line:
                yield f"{template}:{number}: write `arn:${{AWS::Partition}}:`"


def undocumented_parameters():
    text = "".join(document.read_text() for document in DOCUMENTS)
    for parameter in yaml_parse((HERE / "template.yaml").read_text())["Parameters"]:
        if f"`{parameter}`" not in text:
            yield f"template.yaml: infra/README.md does not mention the parameter `{parameter}`"


def plain_is_plain():
    """What plain.py makes is CloudFormation without any transform."""
    for template in TEMPLATES:
        text = re.sub(r"CodeUri: \.+\n", "CodeUri: s3://bucket/key\n", (HERE / template).read_text())
        types = [resource["Type"] for resource in plain(yaml_parse(text))["Resources"].values()]
        if any(kind.startswith("AWS::Serverless::") for kind in types):
            yield f"{template}: plain.py leaves something to the SAM transform"


def references(fix):
    for document in DOCUMENTS:
        text, findings = document.read_text(), []

        def moved(match):
            shown, line, what, path, _ = match.groups()
            target = (document.parent / path).resolve()
            lines = target.read_text().splitlines() if target.is_file() else []
            if int(line) <= len(lines) and what in lines[int(line) - 1] and match[5] == line:
                return match[0]
            found = [number for number, content in enumerate(lines, 1) if what in content]
            if len(found) != 1:
                findings.append(f"{document.name}: `{what}` stands in {len(found)} lines of {path}, and not in line {line}")
                return match[0]
            if not fix and abs(found[0] - int(line)) > LINES_IN_SIGHT:
                findings.append(f"{document.name}: `{what}` is in line {found[0]} of {path}, not in line {line}: run infra/check --fix")
            return f"[`{shown}:{found[0]}` `{what}`]({path}#L{found[0]})"

        changed = REFERENCE.sub(moved, text)
        if fix and changed != text:
            document.write_text(changed)
        if not REFERENCE.search(text):
            findings.append(f"{document.name}: there is no reference at all")
        yield from findings


findings = [*unused_parameters(), *unused_outputs(), *one_partition(), *undocumented_parameters(), *plain_is_plain(), *references("--fix" in sys.argv)]
for finding in findings:
    print(finding, file=sys.stderr)
sys.exit(bool(findings))
