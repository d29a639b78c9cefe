"""A local page: classify, search a folder, see where a model looks, compare pictures and texts."""
