# Needs an environment with '.[test,dev]' on PATH, see CONTRIBUTING.md.
.PHONY: help check format test wheel
help:
	@echo "check   formatter, linter, strict types"
	@echo "format  let the formatter and linter mend what they can"
	@echo "test    all tests"
	@echo "wheel   build the wheel into dist/"
check:
	ruff format --check .
	ruff check .
	mypy
format:
	ruff format .
	ruff check --fix .
test:
	python -m pytest -q
wheel:
	python -m build --wheel
