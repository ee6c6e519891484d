"""The search for heterogeneous encoders. The command is in `cli.py`; these names are for programs.

They are imported when first used, so that the command answers a wrong option without waiting for torch. Which they are
says `__init__.pyi`, to editors, to type checkers and to this module.
"""

import lazy_loader


__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
