"""Settings that affect results, read from YAML: protocols for evaluation, recipes for training."""

from hrseg_cli.recipe.protocol import BinarizeRule as BinarizeRule
from hrseg_cli.recipe.protocol import Protocol as Protocol
from hrseg_cli.recipe.protocol import Tiles as Tiles
from hrseg_cli.recipe.protocol import ZoomIn as ZoomIn
from hrseg_cli.recipe.protocol import binarize_rule as binarize_rule
from hrseg_cli.recipe.protocol import load_protocol as load_protocol
from hrseg_cli.recipe.protocol import protocol_names as protocol_names
from hrseg_cli.recipe.protocol import with_binarize as with_binarize
from hrseg_cli.recipe.reading import data_folder as data_folder
from hrseg_cli.recipe.tables import TablePlan as TablePlan
from hrseg_cli.recipe.tables import TablesPlan as TablesPlan
from hrseg_cli.recipe.tables import load_tables as load_tables
from hrseg_cli.recipe.tables import tables_names as tables_names
from hrseg_cli.recipe.training import Adapter as Adapter
from hrseg_cli.recipe.training import Augmentation as Augmentation
from hrseg_cli.recipe.training import Clicks as Clicks
from hrseg_cli.recipe.training import Composite as Composite
from hrseg_cli.recipe.training import Data as Data
from hrseg_cli.recipe.training import Loss as Loss
from hrseg_cli.recipe.training import Optim as Optim
from hrseg_cli.recipe.training import Recipe as Recipe
from hrseg_cli.recipe.training import Validation as Validation
from hrseg_cli.recipe.training import load_recipe as load_recipe
from hrseg_cli.recipe.training import recipe_names as recipe_names
from hrseg_cli.recipe.training import recipe_of as recipe_of
