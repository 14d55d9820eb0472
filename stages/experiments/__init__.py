"""Experiments on trained models and recipes. Each module with a `main` is one Make target, named like it.

The others are parts: `jobs`, `plan`, `rows`, `systems` and `systems_page` of `reproduce`, `variety` of `compare`,
`quality` of both.
"""
