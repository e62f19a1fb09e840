"""What tests of several files need, one file a subject: `from tests.support.scoring import same`."""
