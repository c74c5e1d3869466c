"""Makes the Prometheus operator's form of the alert rules from Prometheus' own rule file.

python -m tests.make_rules
"""

from __future__ import annotations

import textwrap
from pathlib import Path

MONITORING = Path(__file__).parents[1] / "deploy" / "monitoring"
SOURCE = MONITORING / "rules.yaml"
MADE = MONITORING / "prometheusrule.yaml"

HEAD = """\
# rules.yaml in the form of the Prometheus operator. Do not edit: python -m tests.make_rules
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: etcdsem
spec:
"""


def made() -> str:
    """The PrometheusRule with all groups of the rule file."""
    _, start, groups = SOURCE.read_text().partition("groups:\n")
    return HEAD + textwrap.indent(start + groups, "  ")


if __name__ == "__main__":
    MADE.write_text(made())
