"""The command line. `commands/` declares what each command is called and takes; the modules beside it do it, and are
imported when their command runs.
"""
