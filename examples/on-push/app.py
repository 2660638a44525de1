"""Say what was pushed: the function of the demonstration."""

from nodeless import Event, function


@function(subject="events.git.push.>")
def on_push(event: Event) -> dict[str, object]:
    push = event.json()
    subjects = [commit["subject"] for commit in push["commits"]]
    print(f"{push['pusher']} pushed {len(subjects)} commit(s) to {push['ref']} of {push['repository']}")
    return {"ref": push["ref"], "after": push["after"], "commits": subjects}
