"""Plug-ins of other programs, which import them: a module each."""
