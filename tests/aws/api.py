"""Any call to AWS by its name: reads `[service, operation, parameters]`, a line each, and answers a line each.

boto3 comes with the stand-in, and building seven more SDK crates for the tests' own calls would take minutes.
`tests/aws/api.rs` starts this file. In parameters `{"file": path}` stands for what a file holds.
"""

import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ParamValidationError


def given(value):
    if isinstance(value, dict):
        if value.keys() == {"file"}:
            with open(value["file"], "rb") as file:
                return file.read()
        return {key: given(item) for key, item in value.items()}
    return [given(item) for item in value] if isinstance(value, list) else value


def shown(value):
    """What JSON cannot say: bodies and times."""
    return value.read().decode() if hasattr(value, "read") else str(value)


def main(endpoint, region, *key):
    session = boto3.Session(*key, region_name=region)
    patient = Config(read_timeout=120, retries={"total_max_attempts": 1})
    clients = {}
    for line in sys.stdin:
        service, operation, parameters = json.loads(line)
        try:
            if service not in clients:
                clients[service] = session.client(service, endpoint_url=endpoint, config=patient)
            answer = {"ok": getattr(clients[service], operation)(**given(parameters))}
        except ClientError as error:
            answer = {"code": error.response["Error"]["Code"], "message": error.response["Error"]["Message"]}
        except ParamValidationError as error:
            answer = {"code": "ParamValidation", "message": str(error)}
        print(json.dumps(answer, default=shown), flush=True)


main(*sys.argv[1:])
