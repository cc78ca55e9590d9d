# Content Library Rsync. `make` or `make help` lists what can be done here.
# Nothing but make and a Debian machine is needed: the targets install the rest (as root, or with passwordless sudo).

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak bench lint docs screenshots images up down clean

setup_sh := tests/support/setup.sh
python := .venv/bin/python
# /usr/sbin, where sshd lives, is not on an ordinary user's PATH.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
# Compose v2 where it is installed, else v1.
compose = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

help: ## Say what can be done here
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Install what `clr` and its tests need; afterwards .venv/bin/clr works
	@$(setup_sh) packages demo
	@$(setup_sh) venv dev

demo: ## Watch templates travel from a locked-down sshd to a subscribable library, on this machine
	@$(setup_sh) packages demo
	@$(setup_sh) venv run
	@cd tests && ../$(python) -m support.demo

test: ## Run all tests (those with containers only where a Docker engine answers)
	@$(setup_sh) packages test
	@$(setup_sh) venv dev
	@.venv/bin/pytest -c tests/pytest.ini -n auto tests

soak: ## Let random faults befall a running pair for SOAK=10m (90s, 1h, ...); SOAK_SEED=n repeats a run
	@$(setup_sh) packages test
	@$(setup_sh) venv dev
	@cd tests && ../$(python) -m support.soak

bench: ## Measure bytes, time and memory against baselines; BENCH=small in minutes, BENCH_ONLY=case,case
	@$(setup_sh) packages bench
	@$(setup_sh) venv dev
	@cd tests && nice -n 10 ../$(python) -m bench

lint: ## Check style, types, shell files, YAML and compose files; warnings are errors
	@$(setup_sh) packages lint
	@$(setup_sh) venv dev
	@tests/support/lint.sh

docs: ## Write the generated reference pages anew
	@$(setup_sh) venv dev
	@cd tests && ../$(python) -m support.reference

screenshots: ## Take the documentation's pictures of the site page anew
	@$(setup_sh) packages test
	@$(setup_sh) venv dev
	@cd tests && ../$(python) -m support.screenshots

images: ## Build both images
	@docker version >/dev/null 2>&1 || { echo "No Docker engine answers; start one, or see make demo"; exit 1; }
	@tests/support/base-image.sh
	@$(compose) -f docker-compose.server.yaml build
	@$(compose) -f docker-compose.client.yaml build

up: images ## Start both roles on this host (with a key made for it, if there is none)
	@$(setup_sh) data
	@$(compose) -f docker-compose.server.yaml up -d
	@$(compose) -f docker-compose.client.yaml up -d

down: ## Stop both roles; keys and libraries stay
	@$(compose) -f docker-compose.client.yaml down
	@$(compose) -f docker-compose.server.yaml down

clean: ## Remove what these targets made: .venv, the demo's files, caches
	@rm -rf .venv .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .cache/bench tests/.pytest_cache tests/.hypothesis
	@find client tests -name __pycache__ -type d -prune -exec rm -rf {} +
