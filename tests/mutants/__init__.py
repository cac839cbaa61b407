"""Mutants: small patches that remove one guarantee each, and the tests that must then fail.

A mutant is a patch against the root of the repository, `tests/mutants/<name>.patch`. It begins with a header:

    Without it: what goes wrong, in one sentence
    Fails: tests/…::test_name, tests/…::test_another
    With: AssertionError, TimeoutError          (only if a failure may be another exception than AssertionError)

`python -m tests.mutants` applies each to a copy of the source and runs the tests that it names.

To write one, edit the source, append `git diff` to the header, and undo the edit. When a patch does not apply any
more, begin with `git apply --3way tests/mutants/<name>.patch`.
"""
