"""Networks small enough for a phone, one file each."""
