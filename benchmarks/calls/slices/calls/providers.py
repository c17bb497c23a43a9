from dishka import Provider, Scope


class A: ...


class B: ...


class C: ...


class D: ...


provider = Provider(scope=Scope.APP)
for service in (A, B, C, D):
    provider.provide(service)
