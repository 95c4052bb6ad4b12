"""The papers' equations as pure functions of arrays: views, patches, effects."""
