.DEFAULT_GOAL := help
bin := .venv/bin

help:  ## what there is to make
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 17

.venv/ready: pyproject.toml constraints.txt setup.sh
	@./setup.sh

setup: .venv/ready  ## the environment in .venv

demo: .venv/ready  ## data, training, bundle, server, one member's homepage
	@$(bin)/frontrow demo

lint: .venv/ready  ## ruff and pyright
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/pyright

test: lint  ## lint, types, every test
	$(bin)/pytest -m "not long"

test-long: .venv/ready  ## what takes longer: several training runs, soak
	$(bin)/pytest -m long

bench: .venv/ready  ## what the README's tables say, into benchmarks/results/: quality, latency, CPU kernels
	$(bin)/frontrow reproduce ml-100k
	$(bin)/frontrow bench latency
	$(bin)/frontrow bench scoring-cpu
	$(bin)/frontrow bench embedding-cpu

bench-gpu: .venv/ready  ## on a GPU: the kernels' tests, then their times against floors and peers
	$(bin)/pytest tests/kernels
	$(bin)/frontrow bench kernels

bench-serve-gpu: .venv/ready  ## on a GPU: homepages of 10⁵ titles, the engine alone and then the server under load
	$(bin)/pytest tests/serving/test_graphs.py
	[ -d bundles-synthetic/1 ] || $(bin)/python -m frontrow.benchmarks.synthetic_bundle bundles-synthetic
	$(bin)/python -m frontrow.benchmarks.in_process bundles-synthetic/1 --processes 1 4 8
	$(bin)/python -m frontrow.benchmarks.in_process bundles-synthetic/1 --eager
	$(bin)/frontrow bench install
	$(bin)/frontrow bench serve bundles-synthetic/1

clean:  ## all that was made, but the environment
	rm -rf data runs bundles build dist *.egg-info

.PHONY: help setup demo lint test test-long bench bench-gpu bench-serve-gpu clean
