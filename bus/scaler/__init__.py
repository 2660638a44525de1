"""The scaler's hands: worker pods, their credentials, and what is told about it."""
