"""Turns a packaged SAM template into plain CloudFormation, for those who allow no macros in their account.

    infra/tools python infra/plain.py packaged.yaml >palisade.json

It is the transform that CloudFormation itself would run (aws-sam-translator), here and now.
"""

import json
import os
import sys

from samcli.yamlhelper import yaml_parse
from samtranslator.translator.transform import transform


# The transform asks for a Region, although no Region enters our templates.
os.environ.setdefault("AWS_DEFAULT_REGION", "us-east-1")


class NoManagedPolicies:
    """No role in our templates uses one."""

    def load(self):
        return {}


def plain(template):
    return transform(template, {}, NoManagedPolicies())


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as packaged:
        json.dump(plain(yaml_parse(packaged.read())), sys.stdout, indent=1, default=str)
