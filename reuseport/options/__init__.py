"""The options: each declared once (declared/), read from flags, environment and file (reading.py) into Settings.

Standard library only: the master imports this, and must never load what belongs to a worker or to a terminal.
"""

from reuseport.options.address import Address, parse_address
from reuseport.options.arguments import OptionError
from reuseport.options.checks import check, overlooked
from reuseport.options.machine import default_run_dir, usable_cores
from reuseport.options.reading import from_keywords, load, reload, working_directory
from reuseport.options.settings import Settings, changed_at_start_only, ways_to_change
from reuseport.options.spec import AppSpec, parse_app
from reuseport.options.table import OPTIONS, Option

__all__ = [
    "OPTIONS",
    "Address",
    "AppSpec",
    "Option",
    "OptionError",
    "Settings",
    "changed_at_start_only",
    "check",
    "default_run_dir",
    "from_keywords",
    "load",
    "overlooked",
    "parse_address",
    "parse_app",
    "reload",
    "usable_cores",
    "ways_to_change",
    "working_directory",
]
