"""Make etcd's users and roles agree with the file `users.txt`, and enable authentication.

Each user gets a role of the same name with exactly the permissions that the file lists. The user
root may do everything. Users and roles that are not in the file are left alone. Users have no
password: they present a certificate whose common name is the user's name. If everything agrees,
nothing is written, so that it can run often.

It also fails if the certificate of a member ends soon, so that an alert on it tells in time.
"""

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

DAYS = 30
"""A certificate that ends within so many days is an error."""

FILE = Path(__file__).with_name("users.txt")
PERMISSIONS = ("read", "write", "readwrite")  # by etcd's number

Permissions = dict[tuple[str, str], str]
"""The permission for each range of keys: its first key, and the first key behind it."""


def wanted_permissions() -> dict[str, Permissions]:
    """Return what the file says, for each user."""
    wanted: dict[str, Permissions] = defaultdict(dict)
    for line in FILE.read_text().splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 3 or words[0] == "root" or words[1] not in PERMISSIONS:
            sys.exit(f"{FILE.name}: expected a user, a permission and a prefix: {line}")
        user, permission, prefix = words
        wanted[user][prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1)] = permission
    return wanted


def etcdctl(*arguments: str) -> str:
    """Run etcdctl and return its output; exit if it fails."""
    done = subprocess.run(["etcdctl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def change(*arguments: str) -> None:
    """Run etcdctl, and say so."""
    etcdctl(*arguments)
    print("etcdctl", *arguments, flush=True)


def wait_for_etcd() -> None:
    """Wait until a quorum answers, for at most five minutes."""
    for _ in range(100):
        done = subprocess.run(["etcdctl", "endpoint", "health"], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(3)
    sys.exit(f"etcd did not become healthy: {done.stderr.strip()}")


def present_permissions(role: str) -> Permissions:
    """Return what a role may do in etcd."""
    answer = json.loads(etcdctl("role", "get", role, "--write-out=json"))
    return {
        (_text(one.get("key", "")), _text(one.get("range_end", ""))): PERMISSIONS[
            one.get("permType", 0)
        ]
        for one in answer.get("perm") or ()
    }


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode(errors="surrogateescape")


def set_role(role: str, wanted: Permissions) -> None:
    """Give a role exactly these permissions; new ones first, so that nothing is missing between."""
    present = present_permissions(role)
    for keys, permission in wanted.items():
        if present.get(keys) != permission:
            change("role", "grant-permission", role, permission, *keys)
    for keys in set(present) - set(wanted):
        change("role", "revoke-permission", role, *filter(None, keys))


def check_certificates() -> None:
    """Exit if the certificate that a member serves ends soon. A member that is away is left out."""
    context = ssl.create_default_context(cafile=os.environ["ETCDCTL_CACERT"])
    context.load_cert_chain(os.environ["ETCDCTL_CERT"], os.environ["ETCDCTL_KEY"])
    for endpoint in os.environ["ETCDCTL_ENDPOINTS"].split(","):
        host, port = endpoint.rpartition("/")[2].split(":")
        try:
            plain = socket.create_connection((host, int(port)), timeout=10)
        except OSError as error:
            print(f"{host}: {error}")
            continue
        with plain, context.wrap_socket(plain, server_hostname=host) as connection:
            ends = ssl.cert_time_to_seconds(connection.getpeercert()["notAfter"])
        left = int(ends - time.time()) // 86400
        if left < DAYS:
            sys.exit(f"the certificate of {host} ends in {left} days: run certificates.sh again")


def main() -> None:
    """Do everything."""
    wait_for_etcd()
    wanted = {"root": {}, **wanted_permissions()}
    for role in set(wanted) - set(etcdctl("role", "list").split()):
        change("role", "add", role)
    for user in set(wanted) - set(etcdctl("user", "list").split()):
        change("user", "add", user, "--no-password")
    for name, permissions in wanted.items():
        if name != "root":
            set_role(name, permissions)
        if name not in etcdctl("user", "get", name).partition("Roles:")[2].split():
            change("user", "grant-role", name, name)
    if "Authentication Status: true" not in etcdctl("auth", "status"):
        change("auth", "enable")
    print("authentication is enabled; users:", *wanted)
    check_certificates()


main()
