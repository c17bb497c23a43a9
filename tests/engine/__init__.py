"""The engine of a generated service, driven through slices that each test writes itself."""
