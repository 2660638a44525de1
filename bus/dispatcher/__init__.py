"""The dispatcher: each Function has its consumer, its wake signals and the workers that its events need."""
