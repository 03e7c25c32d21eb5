"""CloudFormation's types for WAF, and WAF's logging configurations, neither of which ministack has; and what it leaves out of
others: a bucket's encryption, a secret's `Ref`, and the request validation of an OpenAPI document.

Their properties and what `Ref` and `Fn::GetAtt` give are those of the CloudFormation template reference.
As there, an update sends a resource's template content whenever any of its properties changed: an IP set whose template
says `Addresses: []` is emptied by that.
"""

import json

from ministack.core import responses
from ministack.services import apigateway_v1, s3, secretsmanager, waf
from ministack.services.cloudformation import provisioners

NAMED = ("IPSet", "RuleGroup", "RegexPatternSet")
LOGGING_MEMBERS = ("ResourceArn", "LogDestinationConfigs", "RedactedFields", "LoggingFilter")
logging = {}


def answered(answer):
    """What an API call answers, or CloudFormation's failure."""
    status, _, body = answer
    told = json.loads(body)
    if status >= 400:
        raise ValueError(f"{told.get('__type')}: {told.get('message')}")
    return told


def call(verb, kind, request):
    name = f"_{verb}_" + {"IPSet": "ip_set", "RuleGroup": "rule_group", "RegexPatternSet": "regex_pattern_set"}[kind]
    return answered(getattr(waf, name)(request))  # looked up late, so that the strict ones are found


def spelled_as_in_the_api(value):
    """`Arn` and the like: in templates some members are written otherwise than in WAF's API."""
    if isinstance(value, dict):
        renamed = {"Arn": "ARN"}
        return {renamed.get(key, key): spelled_as_in_the_api(item) for key, item in value.items()}
    return [spelled_as_in_the_api(item) for item in value] if isinstance(value, list) else value


def named_type(kind):
    def identity(physical_id):
        name, uid, scope = physical_id.split("|")
        return {"Name": name, "Id": uid, "Scope": scope}

    def locked(physical_id):
        named = identity(physical_id)
        return {**named, "LockToken": call("get", kind, named)["LockToken"]}

    def attributes(physical_id):
        found = call("get", kind, identity(physical_id))[kind]
        return {"Arn": found["ARN"], "Id": found["Id"]}

    def create(logical_id, properties, stack):
        name = properties.get("Name") or provisioners._physical_name(stack, logical_id, max_len=128)
        made = call("create", kind, {**spelled_as_in_the_api(properties), "Name": name})["Summary"]
        return f"{name}|{made['Id']}|{properties['Scope']}", {"Arn": made["ARN"], "Id": made["Id"]}

    def update(physical_id, old, new, stack, logical_id=None):
        if old == new:  # ministack asks for each resource of the template, CloudFormation for those that changed
            return physical_id, attributes(physical_id)
        if any(old.get(fixed) != new.get(fixed) for fixed in ("Name", "Scope", "IPAddressVersion")):
            return create(logical_id, new, stack)  # "Update requires: Replacement"
        call("update", kind, {**spelled_as_in_the_api(new), **locked(physical_id)})
        return physical_id, attributes(physical_id)

    def delete(physical_id, properties):
        call("delete", kind, locked(physical_id))

    return {"create": create, "update": update, "update_with_logical_id": True, "delete": delete}


def associate(logical_id, properties, stack):
    answered(waf._associate_web_acl(properties))
    return f"{properties['WebACLArn']}|{properties['ResourceArn']}", {}


def put_logging(request):
    wanted = request["LoggingConfiguration"]
    for destination in wanted["LogDestinationConfigs"]:
        # WAF developer guide, "Logging destinations": the name of each kind begins so.
        if not destination.split(":")[-1].split("/")[-1].startswith("aws-waf-logs-"):
            message = f"Error reason: The ARN isn't valid., field: LOG_DESTINATION, parameter: {destination}"
            return responses.error_response_json("WAFInvalidParameterException", message, 400)
    logging[wanted["ResourceArn"]] = wanted
    return responses.json_response({"LoggingConfiguration": wanted})


def get_logging(request):
    if request["ResourceArn"] not in logging:
        return responses.error_response_json("WAFNonexistentItemException", "the resource does not exist", 400)
    return responses.json_response({"LoggingConfiguration": logging[request["ResourceArn"]]})


def delete_logging(request):
    logging.pop(request["ResourceArn"], None)
    return responses.json_response({})


def create_logging(logical_id, properties, stack):
    wanted = {member: properties[member] for member in LOGGING_MEMBERS if member in properties}
    answered(put_logging({"LoggingConfiguration": wanted}))
    return properties["ResourceArn"], {"ManagedByFirewallManager": False}


LOGGING = {
    "PutLoggingConfiguration": put_logging,
    "GetLoggingConfiguration": get_logging,
    "DeleteLoggingConfiguration": delete_logging,
}
handle_request = waf.handle_request


async def handle_with_logging(method, path, headers, body, query):
    action = headers.get("x-amz-target", "").split(".")[-1]
    if action in LOGGING:
        return LOGGING[action](json.loads(body))
    return await handle_request(method, path, headers, body, query)


def encrypted(call):
    """`call` makes or changes a bucket; its encryption is that of the template."""

    def made(*args, **more):
        bucket, attributes = call(*args, **more)
        properties = args[2] if call is bucket_calls["update"] else args[1]
        for rule in properties.get("BucketEncryption", {}).get("ServerSideEncryptionConfiguration", []):
            by_default = rule["ServerSideEncryptionByDefault"]
            members = {"SSEAlgorithm": by_default["SSEAlgorithm"], "KMSMasterKeyID": by_default.get("KMSMasterKeyID", "")}
            text = "".join(f"<{name}>{value}</{name}>" for name, value in members.items())
            s3._put_bucket_encryption(bucket, f"<ServerSideEncryptionConfiguration>{text}</ServerSideEncryptionConfiguration>".encode())
        return bucket, attributes

    return made


def create_secret(logical_id, properties, stack):
    """`Ref` of a secret is its ARN, and not its name."""
    _, attributes = created_secret(logical_id, properties, stack)
    return attributes["Arn"], attributes


def delete_secret(physical_id, properties):
    name, secret = secretsmanager._resolve(physical_id)
    if secret:
        secretsmanager._purge_secret(name, secret)


def import_rest_api(spec, base_data=None):
    """Schemas become models and operations validate by them (API Gateway developer guide, "x-amazon-apigateway-request-validator")."""
    api = imported_rest_api(spec, base_data)
    for name, schema in spec.get("components", {}).get("schemas", {}).items():
        answered(apigateway_v1._create_model(api, {"name": name, "schema": json.dumps(schema)}))
    validators = {}
    for name, validator in spec.get("x-amazon-apigateway-request-validators", {}).items():
        validators[name] = answered(apigateway_v1._create_request_validator(api, {"name": name, **validator}))["id"]
    for resource in apigateway_v1._resources[api].values():
        for method, found in resource["resourceMethods"].items():
            operation = spec["paths"].get(resource["path"], {}).get(method.lower(), {})
            found["requestValidatorId"] = validators.get(operation.get("x-amazon-apigateway-request-validator"))
            content = operation.get("requestBody", {}).get("content", {})
            found["requestModels"] = {kind: of["schema"]["$ref"].rsplit("/", 1)[-1] for kind, of in content.items()}
    return api


bucket_calls = dict(provisioners._RESOURCE_HANDLERS["AWS::S3::Bucket"])
created_secret = provisioners._sm_secret_create
imported_rest_api = apigateway_v1._import_rest_api


def register():
    apigateway_v1._import_rest_api = import_rest_api
    provisioners._RESOURCE_HANDLERS["AWS::S3::Bucket"].update(
        {name: encrypted(bucket_calls[name]) for name in ("create", "update")}
    )
    secret = provisioners._RESOURCE_HANDLERS["AWS::SecretsManager::Secret"]
    secret.update({"create": create_secret, "delete": delete_secret})
    waf.handle_request = handle_with_logging
    provisioners._RESOURCE_HANDLERS.update({f"AWS::WAFv2::{kind}": named_type(kind) for kind in NAMED})
    provisioners._RESOURCE_HANDLERS["AWS::WAFv2::WebACLAssociation"] = {
        "create": associate,
        "delete": lambda physical_id, properties: answered(waf._disassociate_web_acl(properties)),
    }
    provisioners._RESOURCE_HANDLERS["AWS::WAFv2::LoggingConfiguration"] = {
        "create": create_logging,
        "update": lambda physical_id, old, new, stack: create_logging("", new, stack),
        "delete": lambda physical_id, properties: answered(delete_logging(properties)),
    }
