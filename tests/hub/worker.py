"""A process that runs snippets: one JSON line in ({"code": ..., "values": {...}}), one out.

Importing diffusers costs seconds, so the tests of this room share a few of these processes. With
`--without-hfgen` nothing of hfgen can be imported, as on a machine that never heard of it.
"""

import json
import os
import sys
import traceback


class Absent:
    """A finder that denies hfgen."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] == "hfgen":
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
        return None


def main() -> None:
    if "--without-hfgen" in sys.argv:
        sys.meta_path.insert(0, Absent)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        space = dict(asked["values"])
        try:
            exec(compile(asked["code"], "<test>", "exec"), space)
            answer = {"result": space.get("result")}
        except BaseException as error:
            answer = {
                "error": type(error).__name__,
                "bases": [base.__name__ for base in type(error).__mro__],
                "message": str(error),
                "traceback": traceback.format_exc(),
            }
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # nothing here is worth the seconds that an orderly end of torch takes


if __name__ == "__main__":
    main()
