"""What AWS's services do in a role's name, which ministack lets everybody do. In force only with AUTH=true.

ministack checks who calls an API. It does not check its own services: its Lambda polls queues, writes logs and traces, its
scheduler invokes, its Firehose delivers, its Athena reads tables, logs and results, and its S3 uses keys, whatever the role
says. A grant for those would be granted in vain, and nobody would notice. `tests/stack.rs` takes grants away one by one and
waits for something to fail, which nothing would if this were not in force. Each rule here is one that AWS documents.
"""

import contextvars
import json
import threading
from urllib.parse import unquote

import ministack.app as app
from ministack.core import iam_actions, iam_evaluator, responses, router
from ministack.services import athena, eventbridge, firehose, glue, kms, lambda_svc, s3, sqs

REFUSED = threading.local()
# In whose name Firehose delivers, and Athena runs a query.
ROLE = contextvars.ContextVar("role")
ASKING = contextvars.ContextVar("asking")


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
    """ministack takes all that WAF knows for web ACLs; grants are for single IP sets. In Athena it finds no query's
    workgroup, and takes a catalog's table for one of a workgroup (Service Authorization Reference, "Athena")."""
    action = headers.get("x-amz-target", "").split(".")[-1]
    if service == "athena" and action == "GetTableMetadata":
        return f"arn:aws:athena:{region}:{account}:datacatalog/{json.loads(body)['CatalogName']}"
    if service == "athena" and b"QueryExecutionId" in (body or b""):
        execution = athena._executions.get(json.loads(body)["QueryExecutionId"]) or {"WorkGroup": "none"}
        return f"arn:aws:athena:{region}:{account}:workgroup/{execution['WorkGroup']}"
    if service == "wafv2" and action in ("GetIPSet", "UpdateIPSet", "DeleteIPSet"):
        asked = json.loads(body)
        place = "regional" if asked["Scope"] == "REGIONAL" else "global"
        return f"arn:aws:wafv2:{region}:{account}:{place}/ipset/{asked['Name']}/{asked['Id']}"
    return original["extract_resource_arn"](service, method, path, headers, body, query, region, account)


def refused(key, action, resource):
    """Whether somebody with this access key may not."""
    return iam_evaluator.enforce(key, action, action.split(":")[0], responses.get_region(), resource) is not None


def key_of(bucket, key=None):
    """The KMS key that an object is, or a new one would be, encrypted with."""
    if key is None:
        headers = s3._bucket_default_sse_headers(bucket)
    else:
        found = s3._buckets.get(bucket, {}).get("objects", {}).get(key)
        headers = s3._stored_sse_headers(found) if found else {}
    return headers.get("x-amz-server-side-encryption-aws-kms-key-id")


async def handle_s3(method, path, headers, body, query, **more):
    """S3 says that something is missing only to those who may list (API reference, GetObject); others hear 403. It uses
    a KMS key in the name of whoever asks: `kms:GenerateDataKey` to put an object, `kms:Decrypt` to get one (S3 user guide,
    "Using server-side encryption with AWS KMS keys")."""
    bucket, _, name = unquote(path).lstrip("/").partition("/")
    asking = router.extract_access_key_id(headers, query)
    if name and method in ("GET", "PUT") and not more:
        used = key_of(bucket, name if method == "GET" else None)
        action = "kms:Decrypt" if method == "GET" else "kms:GenerateDataKey"
        if used and refused(asking, action, used):
            return s3._error("AccessDenied", f"not authorized to perform: {action} on resource: {used}", 403)
    answer = await original["handle_s3"](method, path, headers, body, query, **more)
    if answer[0] == 404 and b"NoSuchKey" in (answer[2] or b"") and refused(asking, "s3:ListBucket", f"arn:aws:s3:::{bucket}"):
        return s3._error("AccessDenied", "Access Denied", 403)
    return answer


def deliver(stream, destination, *rest):
    """Firehose delivers in the name of its destination's role, whose key is the bucket's."""
    ROLE.set(destination["config"]["RoleARN"])
    original["deliver"](stream, destination, *rest)


def put_delivered(bucket, key, body):
    role, used = ROLE.get(), key_of(bucket)
    may_put = may(role, "s3:PutObject", f"arn:aws:s3:::{bucket}/{key}")
    if may_put and (not used or may(role, "kms:GenerateDataKey", used)):
        original["put_delivered"](bucket, key, body)


async def handle_athena(method, path, headers, body, query):
    ASKING.set(router.extract_access_key_id(headers, query))
    return await original["handle_athena"](method, path, headers, body, query)


def needed_for(query, database, output):
    """What a query needs of Glue and S3 in the name of whoever asks. Athena user guide: "Configure access to databases and
    tables in the AWS Glue Data Catalog" (the database `default`, a resource and all that is above it), "Control access to
    Amazon S3 from Athena" (the logs, and the place of the results)."""
    place = f"arn:aws:glue:{responses.get_region()}:{responses.get_account_id()}"
    catalog, default, here = f"{place}:catalog", f"{place}:database/default", f"{place}:database/{database}"
    for resource in (catalog, default):
        yield "glue:GetDatabase", resource
        yield "glue:CreateDatabase", resource
    yield "glue:GetDatabase", here
    for name, table in list(glue._tables.items()):
        of, _, name = name.partition("/")
        if of != database or name not in query:
            continue
        for resource in (catalog, here, f"{place}:table/{database}/{name}"):
            yield "glue:GetTable", resource
        bucket, _, prefix = table["StorageDescriptor"]["Location"].removeprefix("s3://").partition("/")
        yield "s3:GetBucketLocation", f"arn:aws:s3:::{bucket}"
        yield "s3:ListBucket", f"arn:aws:s3:::{bucket}"
        for key in [key for key in list(s3._buckets[bucket]["objects"]) if key.startswith(prefix)]:
            yield "s3:GetObject", f"arn:aws:s3:::{bucket}/{key}"
            if used := key_of(bucket, key):
                yield "kms:Decrypt", used
    bucket, _, key = output.removeprefix("s3://").partition("/")
    yield "s3:GetBucketLocation", f"arn:aws:s3:::{bucket}"
    yield "s3:PutObject", f"arn:aws:s3:::{bucket}/{key}"
    if used := key_of(bucket):
        yield "kms:GenerateDataKey", used


async def execute_query(query_id, query, database, *rest):
    execution = athena._executions[query_id]
    for action, resource in needed_for(query, database, execution["ResultConfiguration"]["OutputLocation"]):
        if refused(ASKING.get(), action, resource):
            why = f"Insufficient permissions to execute the query. not authorized to perform: {action} on resource: {resource}"
            execution["Status"].update(State="FAILED", StateChangeReason=why)
            return
    await original["execute_query"](query_id, query, database, *rest)


def query_results(request):
    """Whoever reads results must be able to read the object that they are in (API reference, GetQueryResults)."""
    execution = athena._executions.get(request.get("QueryExecutionId"))
    place = execution["ResultConfiguration"]["OutputLocation"].removeprefix("s3://")
    if refused(ASKING.get(), "s3:GetObject", f"arn:aws:s3:::{place}"):
        return responses.error_response_json("AccessDeniedException", "not authorized to perform: s3:GetObject", 400)
    return original["query_results"](request)


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


def key_lets_in(key_arn, service):
    """Whether a key's policy lets a service send to an encrypted queue (SQS developer guide, "Configure KMS permissions
    for AWS services")."""
    policy, account = kms.key_policy_for_arn(key_arn)

    def allows(action):
        context = iam_evaluator.EvalContext(
            principal_arn="*",
            principal_type="Service",
            principal_account="",
            action=action,
            resource_arn=key_arn,
            region=responses.get_region(),
            service_context={"aws:sourceaccount": account},
        )
        return iam_evaluator.evaluate_resource_policy(policy, context, service=service).decision == "Allow"

    return allows("kms:Decrypt") and allows("kms:GenerateDataKey")


def invoke_target(target, event, rule, *rest):
    """The scheduler invokes in a role's name; a rule of EventBridge sends if the queue's policy lets it."""
    arn, role = target.get("Arn", ""), target.get("RoleArn")
    if role and not may(role, "lambda:InvokeFunction", arn):
        return
    if not role and ":sqs:" in arn:
        source = rule["Arn"] if "Arn" in rule else eventbridge._rule_arn(rule["Name"], "default")
        if not sqs.queue_policy_allows(arn, "events.amazonaws.com", source, responses.get_account_id()):
            return
        used = sqs._queue_by_arn(arn)["attributes"].get("KmsMasterKeyId")
        if used and not key_lets_in(used, "events.amazonaws.com"):
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
    replace(firehose, "_deliver_to_s3", deliver, "deliver")
    replace(firehose, "_put_s3_object", put_delivered, "put_delivered")
    replace(athena, "handle_request", handle_athena, "handle_athena")
    replace(athena, "_execute_query", execute_query, "execute_query")
    replace(athena, "_get_query_results", query_results, "query_results")
