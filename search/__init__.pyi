# The public names and where each is defined; `__init__.py` reads them here.
from .bayesopt.surrogate import Surrogate as Surrogate
from .errors import UserError as UserError
from .evaluation.evaluator import Evaluator as Evaluator
from .evaluation.supernet import SuperNetwork as SuperNetwork
from .recipe import load_recipe as load_recipe
from .samplers.boshnas import BoshnasSampler as BoshnasSampler
from .samplers.op_nas import OpNasSampler as OpNasSampler
from .space.search_space import SearchSpace as SearchSpace
from .study.search import Search as Search

__all__: list[str]
