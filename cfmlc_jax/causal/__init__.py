"""The paper's ideas as pure functions of arrays: views, patches, effects."""
