"""Pods as processes of this machine: function workers forked from a parent, commands of the host, and the reaper above."""
