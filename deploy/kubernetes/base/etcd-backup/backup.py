"""Save a snapshot of etcd to /backup, from the first member that answers, and remove old ones.

Environment: ENDPOINTS (all members; one of them is used), KEEP, and ETCDCTL_*.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

folder = Path("/backup")
target = folder / time.strftime("etcd-%Y%m%dT%H%M%SZ.db", time.gmtime())
for endpoint in os.environ["ENDPOINTS"].split(","):
    done = subprocess.run(["etcdctl", f"--endpoints={endpoint}", "snapshot", "save", str(target)])
    if done.returncode == 0:
        break
else:
    target.unlink(missing_ok=True)
    sys.exit("no snapshot: every member failed")
for old in sorted(folder.glob("etcd-*.db"))[: -int(os.environ["KEEP"])]:
    old.unlink()
print(target, target.stat().st_size, "bytes")
