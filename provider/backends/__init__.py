"""Where pods really run. `seam` is the contract, checked by `tests/contract/test_backend.py` for each of them."""
