from dataclasses import dataclass
from typing import Any
from .runtime import Runtime
@dataclass
class Description:
    data: Any
    text: str
def describe_service(runtime: Runtime) -> Description: raise NotImplementedError
def describe_message(runtime: Runtime, name: str) -> Description: raise NotImplementedError
