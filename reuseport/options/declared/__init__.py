"""The declarations of all options, by whom they concern; `options/table.py` joins them."""
