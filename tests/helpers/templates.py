"""Compiles the templates of pages and e-mails once in a run, not for each server of a test."""

from typing import Any

from jinja2 import Environment


def compile_templates_once() -> None:
    """Cache compiled Jinja templates. The result depends only on the text and the environment's
    settings."""
    compile_anew = Environment.compile
    compiled: dict[tuple[object, ...], Any] = {}

    def compile_once(
        self: Environment, source: Any, name: str | None = None, *further: Any, **options: Any
    ) -> Any:
        escapes = self.autoescape(name) if callable(self.autoescape) else self.autoescape
        settings = (type(self), escapes, self.trim_blocks, self.lstrip_blocks)
        key = (*settings, source, name, *further, *options.items())
        if key not in compiled:
            compiled[key] = compile_anew(self, source, name, *further, **options)
        return compiled[key]

    Environment.compile = compile_once  # type: ignore[method-assign]
