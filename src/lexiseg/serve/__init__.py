"""The page and REST service of ``lexiseg serve`` (docs/serve.md). It needs the extra ``serve``.

A request becomes a `Job`, jobs wait in a `Queue`, and one `Worker` thread takes those of the same model and vocabulary
together.
"""
