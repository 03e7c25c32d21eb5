"""AWS on this machine, for tests: ministack, with IP sets that obey WAF's rules.

ministack takes any lock token and any address. A test that passes there says little, so the five calls on IP sets are
replaced here by ones that refuse what WAF refuses. `cloudformation` adds what CloudFormation knows of WAF, `permissions` what
AWS's services do in a role's name. `tests/aws/standin.rs` starts this file, and `tests/aws/strict.rs`
checks that the rules below are in force: ministack's functions are private, and its next version may move them.

The rules come from the AWS documentation and from reports of users, not from a run against AWS.
"""

import ipaddress
import json
import os
import shutil
import signal
import sys
import threading

from ministack.core import responses
from ministack.services import scheduler, waf

import standin_athena

ADDRESSES_MAX = 10_000
PAGE_MAX = 100


class Refused(Exception):
    """WAF's answer to a request it does not carry out: the exception's name and its members."""

    def __init__(self, name, message, **members):
        super().__init__(message)
        self.name, self.members = name, members


def invalid(field, parameter, reason):
    message = f"Error reason: {reason}, field: {field}, parameter: {parameter}"
    return Refused("WAFInvalidParameterException", message, Field=field, Parameter=parameter, Reason=reason)


def checked(addresses, version):
    """The addresses as WAF gives them back: IPv6 is written out in full."""
    if len(addresses) > ADDRESSES_MAX:
        raise Refused("WAFLimitsExceededException", "the IP set would hold too many addresses")
    seen, networks = set(), []
    for text in addresses:
        try:
            if "/" not in text:
                raise ValueError("a prefix is needed")
            network = ipaddress.ip_network(text)  # refuses host bits
            if network.prefixlen == 0 or version != f"IPV{network.version}":
                raise ValueError("no /0, and one family in one set")
        except ValueError:
            raise invalid("IP_ADDRESS", text, "The parameter contains formatting that is not valid.") from None
        if network in seen:
            raise invalid("IP_ADDRESS", text, "The parameter is a duplicate.")
        seen.add(network)
        networks.append(network)
    return [network.exploded for network in networks]


def check_description(request):
    if request.get("Description") == "":
        raise invalid("DESCRIPTION", "", "The parameter contains formatting that is not valid.")


def existing(request):
    """The set that a request names. Its name and its id must both be right."""
    ip_set = waf._resource_from_scope(waf._ip_sets, request.get("Id", ""), request["Scope"])
    if ip_set is None or ip_set["Name"] != request.get("Name"):
        raise Refused("WAFNonexistentItemException", "the resource does not exist")
    return ip_set


def unchanged(request):
    """The set that a request names, if nobody changed it since its lock token was given out."""
    ip_set = existing(request)
    if request.get("LockToken") != ip_set["LockToken"]:
        raise Refused("WAFOptimisticLockException", "someone changed the resource after you started to edit it")
    return ip_set


def create(request):
    check_description(request)
    addresses = checked(request.get("Addresses", []), request.get("IPAddressVersion"))
    return original["_create_ip_set"]({**request, "Addresses": addresses})


def get(request):
    existing(request)
    return original["_get_ip_set"](request)


def update(request):
    ip_set = unchanged(request)
    check_description(request)
    ip_set["Addresses"] = checked(request.get("Addresses", []), ip_set["IPAddressVersion"])
    ip_set["Description"] = request.get("Description", "")  # left out means erased
    ip_set["LockToken"] = responses.new_uuid()
    return responses.json_response({"NextLockToken": ip_set["LockToken"]})


def delete(request):
    ip_set = unchanged(request)
    users = [waf._values_for_scope(store, request["Scope"]) for store in (waf._web_acls, waf._rule_groups)]
    if any(ip_set["ARN"] in json.dumps(user.get("Rules", [])) for found in users for user in found):
        raise Refused("WAFAssociatedItemException", "the resource is used by another resource")
    return original["_delete_ip_set"](request)


def list_all(request):
    """Pages by name. As in AWS's own examples, the last page has a marker too, and the page behind it is empty."""
    limit, marker = request.get("Limit", PAGE_MAX), request.get("NextMarker", "")
    if not 1 <= limit <= PAGE_MAX:
        raise Refused("ValidationException", "Member must have value between 1 and 100: limit")
    found = sorted(waf._values_for_scope(waf._ip_sets, request["Scope"]), key=lambda ip_set: ip_set["Name"])
    found = [s for s in found if s["Scope"] == request["Scope"] and s["Name"] > marker][:limit]
    members = ("ARN", "Id", "Name", "Description", "LockToken")
    page = {"IPSets": [{member: ip_set[member] for member in members} for ip_set in found]}
    if found:
        page["NextMarker"] = found[-1]["Name"]
    return responses.json_response(page)


def strict(call):
    """`call` as ministack expects it: a request in, an answer out, refusals included."""

    def answer(request):
        try:
            scope = request.get("Scope")
            home = waf.CLOUDFRONT_HOME_REGION
            if scope not in ("REGIONAL", "CLOUDFRONT") or (scope == "CLOUDFRONT" and waf.get_region() != home):
                raise invalid("SCOPE_VALUE", scope, "The scope is not valid.")
            return call(request)
        except Refused as refused:
            return responses.error_response_json(refused.name, str(refused), 400, refused.members)

    return answer


STRICT = {
    "_create_ip_set": create,
    "_get_ip_set": get,
    "_update_ip_set": update,
    "_delete_ip_set": delete,
    "_list_ip_sets": list_all,
}
original = {name: getattr(waf, name) for name in STRICT}
for name, call in STRICT.items():
    setattr(waf, name, strict(call))


standin_athena.install()
scheduler._SCHEDULE_TICK_INTERVAL = 1  # seconds until a schedule whose time has come is noticed; ten otherwise


def end_with_the_tests():
    """Ends with the process that holds the other end of our standard input, however that one ended."""
    sys.stdin.buffer.read()
    shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # and the Lambda processes with us: we lead a group of our own


if __name__ == "__main__":
    import cloudformation
    import permissions
    from ministack.app import main

    cloudformation.register()
    if os.environ.get("AUTH") == "true":
        permissions.enforce()

    threading.Thread(target=end_with_the_tests, daemon=True).start()
    main()
