"""The fixture `etcdsem_memory`, as a project that has etcdsem installed finds it.

If the fixture is not found, this environment was made before the plug-in: ``pip install -e .``
"""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]


@pytest.mark.smoke
def test_each_test_has_an_etcd_of_its_own(pytester: pytest.Pytester) -> None:
    """It is the default of what is given no client, and ends with the test."""
    pytester.makepyfile(
        """
        import pytest
        from etcdsem import Lease, Semaphore
        from etcdsem.testing import Memory

        seen = []

        @pytest.mark.parametrize("limit", [1, 2])
        def test_limit(etcdsem_memory, limit):
            assert isinstance(etcdsem_memory, Memory)
            assert not etcdsem_memory.keys()
            with Semaphore(limit, "db"):
                assert etcdsem_memory.get("/etcdsem/db/max_leases") == str(limit)
            assert all(one is not etcdsem_memory for one in seen)
            seen.append(etcdsem_memory)

        def test_time(etcdsem_memory):
            sem = Semaphore(1, "db")
            sem.acquire()
            etcdsem_memory.suspend("1h")
            assert sem.release() is False
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=3)


@pytest.mark.smoke
def test_who_does_not_ask_for_it_does_not_import_etcdsem(pytester: pytest.Pytester) -> None:
    """Nor does the help, which lists the fixture."""
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_imported():
            assert "_etcdsem_pytest" in sys.modules
            assert not [one for one in sys.modules if one.partition(".")[0] == "etcdsem"]
        """
    )
    pytester.runpytest_subprocess("-p", "no:cacheprovider").assert_outcomes(passed=1)
    listed = pytester.runpytest_subprocess("--fixtures", "-p", "no:cacheprovider")
    listed.stdout.fnmatch_lines(["etcdsem_memory*", "*in-memory etcd*"])


def test_the_library_does_not_import_pytest() -> None:
    """`etcdsem.testing` can be used by any test framework."""
    code = "import sys, etcdsem.testing, etcdsem.testing.aio; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
