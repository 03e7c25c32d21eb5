"""What AWS's services do in a role's name, which ministack lets everybody do. In force only with AUTH=true.

ministack checks who calls an API. It does not check its own services: its Lambda polls queues, writes logs and traces, and
its scheduler invokes, whatever the role says. A grant for those would be granted in vain, and nobody would notice.
`tests/stack.rs` takes grants away one by one and waits for something to fail, which nothing would if this were not in force.
"""

import json
import threading
from urllib.parse import unquote

import ministack.app as app
from ministack.core import iam_actions, iam_evaluator, responses, router
from ministack.services import eventbridge, lambda_svc, s3, sqs

REFUSED = threading.local()


def may(role_arn, action, resource):
    """Whether a role's own policies allow something."""
    account, name = role_arn.split(":")[4], role_arn.rsplit("/", 1)[-1]
    context = iam_evaluator.EvalContext(
        principal_arn=f"arn:aws:sts::{account}:assumed-role/{name}/service",
        principal_type="AssumedRole",
        principal_account=account,
        action=action,
        resource_arn=resource,
        region=responses.get_region(),
        secure_transport=True,
    )
    return iam_evaluator.evaluate(context, iam_evaluator._gather_role_policies(name, account)).decision == "Allow"


def pin_request_origin(address, secure):
    """Calls to AWS come over TLS, and policies insist on it. The stand-in has none."""
    original["pin_request_origin"](address, True)


def resource_arn(service, method, path, headers, body, query, region, account):
    """ministack takes all that WAF knows for web ACLs; grants are for single IP sets."""
    action = headers.get("x-amz-target", "").split(".")[-1]
    if service == "wafv2" and action in ("GetIPSet", "UpdateIPSet", "DeleteIPSet"):
        asked = json.loads(body)
        place = "regional" if asked["Scope"] == "REGIONAL" else "global"
        return f"arn:aws:wafv2:{region}:{account}:{place}/ipset/{asked['Name']}/{asked['Id']}"
    return original["extract_resource_arn"](service, method, path, headers, body, query, region, account)


async def handle_s3(method, path, headers, body, query):
    """S3 says that something is missing only to those who may list (API reference, GetObject); others hear 403."""
    answer = await original["handle_s3"](method, path, headers, body, query)
    if answer[0] == 404 and b"NoSuchKey" in (answer[2] or b""):
        bucket = unquote(path).lstrip("/").split("/")[0]
        key = router.extract_access_key_id(headers, query)
        if iam_evaluator.enforce(key, "s3:ListBucket", "s3", responses.get_region(), f"arn:aws:s3:::{bucket}"):
            return s3._error("AccessDenied", "Access Denied", 403)
    return answer


def polled():
    """Lambda polls a queue in the function's name (Lambda developer guide, "Using Lambda with Amazon SQS")."""
    for account, region, mapping in original["_iter_all_esms"]():
        function = lambda_svc._functions.get_scoped(account, region, mapping["FunctionName"]) or {}
        role = function.get("config", {}).get("Role", "")
        needed = ("sqs:ReceiveMessage", "sqs:GetQueueAttributes")
        if all(may(role, action, mapping.get("EventSourceArn", "")) for action in needed):
            yield account, region, mapping


def run_batch(mapping, function, *rest):
    role = function["config"]["Role"]
    REFUSED.delete = not may(role, "sqs:DeleteMessage", mapping["EventSourceArn"])
    return original["_run_sqs_batch"](mapping, function, *rest)


def delete_messages(*args):
    if not getattr(REFUSED, "delete", False):
        original["_delete_messages_for_esm"](*args)


def emit_logs(function, request_id, text, error, duration_ms, **more):
    """A function's log and its trace are written in its role's name; an invocation succeeds without them."""
    config = function["config"]
    role, group = config["Role"], config.get("LoggingConfig", {}).get("LogGroup")
    group = group or f"/aws/lambda/{config['FunctionName']}"
    stream = f"arn:aws:logs:{responses.get_region()}:{responses.get_account_id()}:log-group:{group}:log-stream:one"
    if not all(may(role, action, stream) for action in ("logs:CreateLogStream", "logs:PutLogEvents")):
        return
    traced = ("xray:PutTraceSegments", "xray:PutTelemetryRecords")
    if config.get("TracingConfig", {}).get("Mode") == "Active" and all(may(role, action, "*") for action in traced):
        text = f"{text}\nXRAY TraceId: {request_id}\tSampled: true"  # Lambda has it in the report's line
    original["_emit_lambda_logs"](function, request_id, text, error, duration_ms, **more)


def invoke_target(target, event, rule, *rest):
    """The scheduler invokes in a role's name; a rule of EventBridge sends if the queue's policy lets it."""
    arn, role = target.get("Arn", ""), target.get("RoleArn")
    if role and not may(role, "lambda:InvokeFunction", arn):
        return
    if not role and ":sqs:" in arn:
        source = rule["Arn"] if "Arn" in rule else eventbridge._rule_arn(rule["Name"], "default")
        if not sqs.queue_policy_allows(arn, "events.amazonaws.com", source, responses.get_account_id()):
            return
    original["_invoke_target"](target, event, rule, *rest)


original = {}


def replace(module, name, by, known_as=None):
    original[known_as or name] = getattr(module, name)
    setattr(module, name, by)


def enforce():
    replace(app, "pin_request_origin", pin_request_origin)
    replace(iam_actions, "extract_resource_arn", resource_arn)
    replace(s3, "handle_request", handle_s3, "handle_s3")
    replace(lambda_svc, "_iter_all_esms", polled)
    replace(lambda_svc, "_run_sqs_batch", run_batch)
    replace(sqs, "_delete_messages_for_esm", delete_messages)
    replace(lambda_svc, "_emit_lambda_logs", emit_logs)
    replace(eventbridge, "_invoke_target", invoke_target)
