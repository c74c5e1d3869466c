# Needs an environment with '.[test,dev]' on PATH, see CONTRIBUTING.md.
.PHONY: help check format test soak wheel image pictures site bench bench-etcd3
help:
	@echo "check   formatter, linter, strict types"
	@echo "format  let the formatter and linter mend what they can"
	@echo "test    all tests, also the slow ones"
	@echo "soak    the long run: SOAK='--seeds 0:2000 --seconds 600 --rate-seconds 120 --ordinary-seconds 60' are its options"
	@echo "pictures docs/*.svg again, from what the commands really draw"
	@echo "site    the documentation into site/, with '.[docs]': SITE='-d FOLDER' are options"
	@echo "bench   all benchmarks and what they say (three quarters of an hour): BENCH='--quick' are options"
	@echo "bench-etcd3 python-etcd3 into .venv-etcd3, to take part in them"
	@echo "wheel   build the wheel into dist/"
	@echo "image   build the image etcdsem; IMAGE='--build-arg BASE=...' are options of docker build"
check:
	ruff format --check .
	ruff check .
	mypy
format:
	ruff format .
	ruff check --fix .
test:
	python -m pytest -q --all
soak:
	python -m tests.chaos.soak $(SOAK)
wheel:
	python -m build --wheel
image:
	docker build -f deploy/Dockerfile -t etcdsem $(IMAGE) .
pictures:
	python docs/make_pictures.py
site:
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet --clean $(SITE)
bench:
	python -m tests.benchmarks.everything bench.json $(BENCH)
bench-etcd3:
	python -m venv .venv-etcd3
	.venv-etcd3/bin/pip install -q 'etcd3>=0.12' 'protobuf<4' 'tenacity<7'
