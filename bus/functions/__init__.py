"""The Function resource: its typed form, its conditions, its status."""
