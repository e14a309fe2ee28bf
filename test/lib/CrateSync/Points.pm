# The worker, held at a named place (src/base/point.h); its server needs crate_sync.debug_points = on.
#
#	my $hold = CrateSync::Points::hold($m, 'before queue');
#	$hold->wait;		# the worker stands there
#	$hold->let_go;
package CrateSync::Points;

use strict;
use warnings;

use CrateSync;

# whoever comes there waits from now on
sub hold
{
	my ($m, $name) = @_;
	my $self = bless { m => $m, name => $name }, __PACKAGE__;

	$self->{session} = $m->background("SET application_name = 'hold $name';\n"
		. "SELECT pg_advisory_lock(28531, hashtext('$name'));\nSELECT 'locked' FROM pg_sleep(3600);\n");
	$m->poll("SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'"
		. " AND classid = 28531 AND objid = (hashtext('$name')::bigint & 4294967295)::oid"
		. ' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())');
	return $self;
}

sub wait
{
	my ($self) = @_;
	return $self->{m}->poll("SELECT count(*) > 0 FROM pg_stat_activity WHERE query = 'held at $self->{name}'"
		. ' AND datname = current_database()');
}

sub let_go
{
	my ($self) = @_;
	my $session = delete $self->{session} or return;
	$self->{m}->sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'hold $self->{name}'"
		. ' AND datname = current_database()');
	$session->done;
}

sub DESTROY
{
	my ($self) = @_;
	local ($?, $@);
	eval { $self->let_go };
}

1;
