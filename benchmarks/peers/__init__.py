"""autoquant beside the engines that people serve models with today: `python -m benchmarks.peers`.

models.py     which models and shapes: data
engines/      one file an engine family; a table names the engines
worker.py     one engine in one process: build, serve, judge
measure.py    the parent: starts workers, takes rounds in turns
tables.py     rows as a table, Markdown and JSON
"""
