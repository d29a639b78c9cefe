"""A folder of pictures, searched by words: the index, exact search, near-duplicates."""
