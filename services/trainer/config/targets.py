"""The forms that an entry of services.policy_targets can have."""

import re

FORMS = (
    "'host:port', 'dns:///name:port', 'kubernetes:///service:port', 'kubernetes:///namespace/service:port' or "
    "'file:///path'"
)


def check_entry(entry: str) -> str:
    """Returns the entry. Raises: ValueError if it has none of the forms of services.policy_targets."""
    scheme, mark, rest = entry.partition("://")
    if not mark:
        check_address(entry)
    elif scheme not in ("dns", "kubernetes", "file") or not rest.startswith("/"):
        raise ValueError(f"'{entry}' is no form of target; write {FORMS}")
    elif scheme == "file":
        if len(rest) == 1 or rest.endswith("/"):
            raise ValueError(f"'{entry}' names no file; write 'file:///path', with one 'host:port' on each line of it")
    else:
        *namespaces, service = rest[1:].split("/")
        check_address(service)
        if len(namespaces) > (scheme == "kubernetes") or "" in namespaces:
            raise ValueError(f"'{entry}' has parts that are too many or empty; write {FORMS}")
    return entry


def check_address(address: str) -> str:
    """Returns the address. Raises: ValueError if it is not "host:port"."""
    host, _, port = address.rpartition(":")
    is_host = re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+(%\w+)?\]", host)
    if not is_host or not re.fullmatch(r"\d{1,5}", port) or not 0 < int(port) < 65536:
        raise ValueError(f"'{address}' is not 'host:port' with a port from 1 to 65535")
    return address
