"""Users, a role and authentication for etcd, by etcdctl. Can be run again at any time.

The user and the role `etcdsem` may read and write below /etcdsem/, and nothing else; the role
`etcdsem-view` may only read there (the exporter, people who look). The user root may do all.
Users have no password: they come with a certificate whose common name is the user's.
"""

import subprocess
import sys
import time

PREFIX = "/etcdsem/"
USERS = {"root": "root", "etcdsem": "etcdsem", "etcdsem-view": "etcdsem-view"}
ROLES = {"etcdsem": "readwrite", "etcdsem-view": "read"}


def etcdctl(*arguments: str) -> str:
    """What etcdctl prints; the script ends if it fails."""
    done = subprocess.run(["etcdctl", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"etcdctl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def wait_for_etcd() -> None:
    """Until a quorum answers; five minutes at most."""
    for _ in range(100):
        done = subprocess.run(["etcdctl", "endpoint", "health"], capture_output=True, text=True)
        if done.returncode == 0:
            return
        time.sleep(3)
    sys.exit(f"etcd does not become healthy: {done.stderr.strip()}")


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
print("etcd asks who you are; users:", *USERS)
