"""Restore a snapshot from /backup as the data of this member. Its old data is kept beside it.

The revision is raised, so that fencing tokens continue above all that were ever given. Environment:
MEMBER, MEMBERS (names and peer URLs, as etcd's --initial-cluster), TOKEN, and SNAPSHOT, a file name
or empty for the newest.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

FOLDER = Path("/backup")
DATA = Path("/var/lib/etcd/data")

snapshots = sorted(FOLDER.glob("etcd-*.db"))
chosen = FOLDER / (os.environ["SNAPSHOT"] or (snapshots[-1].name if snapshots else "none"))
if chosen not in snapshots:
    sys.exit(f"no such snapshot: {chosen}. There are: {[path.name for path in snapshots]}")
member, members = os.environ["MEMBER"], os.environ["MEMBERS"]
urls = dict(one.split("=", 1) for one in members.split(","))
if DATA.exists():
    DATA.rename(DATA.with_name(time.strftime("data-before-%Y%m%dT%H%M%SZ", time.gmtime())))
subprocess.run(
    [
        *("etcdutl", "snapshot", "restore", str(chosen), "--data-dir", str(DATA)),
        *("--name", member, "--initial-cluster", members),
        *("--initial-cluster-token", os.environ["TOKEN"]),
        *("--initial-advertise-peer-urls", urls[member]),
        *("--bump-revision", "1000000000", "--mark-compacted"),
    ],
    check=True,
)
print(f"restored {member} from {chosen.name}")
