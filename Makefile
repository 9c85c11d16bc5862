# `make demo` and `make test` need nothing but uv (pip install uv); both set up .venv from requirements.lock.

PYTHON := .venv/bin/python
# It starts nodes that take all cores, and kills some: nothing may run beside it.
CLUSTER := tests/shared/test_ray_engine.py

.PHONY: demo test lint bench lock clean

demo: .venv/ready
	$(PYTHON) -m demo

test: .venv/ready
	$(PYTHON) -m pytest -n auto --dist loadfile --ignore $(CLUSTER)
	$(PYTHON) -m pytest $(CLUSTER)

lint: .venv/ready
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: .venv/ready
	for file in bench/bench_*.py; do $(PYTHON) $$file || exit 1; done

# All but flash4, which is for certain GPUs alone and large.
EXTRAS := aesthetic download cluster fast ocr s3 semantic bench dev

lock:
	uv pip compile --universal --python-version 3.11 $(EXTRAS:%=--extra %) --no-header --quiet --upgrade pyproject.toml -o requirements.lock

.venv/ready: requirements.lock pyproject.toml
	command -v uv >/dev/null || python3 -m pip install --quiet uv
	test -d .venv || uv venv --quiet .venv
	uv pip sync --quiet --python .venv/bin/python requirements.lock
	uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	touch .venv/ready

clean:
	rm -rf work .venv
