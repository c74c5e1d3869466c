"""Create users and roles in etcd and enable authentication, with etcdctl. Safe to run again.

The user and the role `etcdsem` may read and write below /etcdsem/, and nothing else. The role
`etcdsem-view` may only read there (the exporter, read-only users). The user root may do everything.
Users have no password: they present a certificate whose common name is the user's name.
"""

import subprocess
import sys
import time

PREFIX = "/etcdsem/"
USERS = {"root": "root", "etcdsem": "etcdsem", "etcdsem-view": "etcdsem-view"}
ROLES = {"etcdsem": "readwrite", "etcdsem-view": "read"}


def etcdctl(*arguments: str) -> str:
    """Run etcdctl and return its output; exit if it fails."""
    done = subprocess.run(["etcdctl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def wait_for_etcd() -> None:
    """Wait until a quorum answers, for at most five minutes."""
    for _ in range(100):
        done = subprocess.run(["etcdctl", "endpoint", "health"], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(3)
    sys.exit(f"etcd did not become healthy: {done.stderr.strip()}")


wait_for_etcd()
present = etcdctl("role", "list").split()
for role in {*ROLES, "root"} - set(present):
    etcdctl("role", "add", role)
for role, permission in ROLES.items():
    etcdctl("role", "grant-permission", "--prefix=true", role, permission, PREFIX)
present = etcdctl("user", "list").split()
for user, role in USERS.items():
    if user not in present:
        etcdctl("user", "add", user, "--no-password")
    roles = etcdctl("user", "get", user).partition("Roles:")[2]
    if role not in roles.split():
        etcdctl("user", "grant-role", user, role)
if "Authentication Status: true" not in etcdctl("auth", "status"):
    etcdctl("auth", "enable")
print("authentication is enabled; users:", *USERS)
