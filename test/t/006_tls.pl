# HTTPS, users and passwords: certificates are checked, secrets stay secret.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $true = JSON::PP::true();
my $node = CrateSync::server('tls', conf => "crate_sync.max_retry_interval = 200ms\n");
my $dir  = PostgreSQL::Test::Utils::tempdir();
my $secret = 's3cret-"\\ \'pass:word';

sub openssl
{
	my (@args) = @_;
	my ($out, $err);
	return IPC::Run::run([ 'openssl', @args ], '<', \undef, '>', \$out, '2>', \$err) || die "openssl @args: $err";
}

sub put
{
	my ($name, $text, $mode) = @_;
	open my $f, '>', "$dir/$name" or die;
	print $f $text;
	close $f;
	chmod $mode, "$dir/$name" if defined $mode;
	return "$dir/$name";
}

# a CA, and certificates of it
openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', "$dir/ca.key", '-out', "$dir/ca.crt", '-days', '30',
	'-subj', '/CN=test CA', '-addext', 'basicConstraints=critical,CA:TRUE', '-addext', 'keyUsage=keyCertSign,cRLSign');
put('ca.cnf', <<"EOC");
[ca]
default_ca = d
[d]
database = $dir/index
serial = $dir/serial
new_certs_dir = $dir
certificate = $dir/ca.crt
private_key = $dir/ca.key
default_md = sha256
policy = p
copy_extensions = copy
unique_subject = no
[p]
commonName = supplied
EOC
put('index', '');
put('serial', "01\n");
foreach my $c ([ 'good', 'DNS:localhost', '20200101000000Z', '20490101000000Z' ],
	[ 'wrongname', 'DNS:elsewhere.example', '20200101000000Z', '20490101000000Z' ],
	[ 'expired', 'DNS:localhost', '20200101000000Z', '20210101000000Z' ])
{
	my ($name, $san, $from, $to) = @$c;
	openssl('req', '-newkey', 'rsa:2048', '-nodes', '-keyout', "$dir/$name.key", '-out', "$dir/$name.csr",
		'-subj', "/CN=$name", '-addext', "subjectAltName=$san");
	openssl('ca', '-batch', '-config', "$dir/ca.cnf", '-in', "$dir/$name.csr", '-out', "$dir/$name.crt", '-notext',
		'-startdate', $from, '-enddate', $to);
}
openssl('req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-keyout', "$dir/self.key", '-out', "$dir/self.crt", '-days', '30',
	'-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost');

sub set
{
	my (%s) = @_;
	foreach my $k (sort keys %s)
	{
		my $v = $s{$k};
		$v =~ s/'/''/g;
		$node->safe_psql('postgres', "ALTER SYSTEM SET crate_sync.\"$k\" = '$v'");
	}
	$node->reload;
}

sub refused
{
	my ($m, $words, $name) = @_;
	$m->sql('INSERT INTO t SELECT max(id) + 1 FROM t');
	ok($m->poll(q{SELECT NOT ok AND state LIKE 'target%' FROM crate_sync.status}), "$name: status is not ok");
	my $message = $m->status('coalesce(message, \'\')');
	like($message, $words, "$name: and says why");
	cmp_ok($m->status('queued_keys'), '>=', 1, "$name: keys queue");
}

# --- certificates
set(ssl_ca_file => "$dir/ca.crt");
foreach my $c ([ 'good', '' ], [ 'wrongname', qr/name|match|certificate/i ], [ 'expired', qr/expired|certificate/i ], [ 'self', qr/self|certificate/i ])
{
	my ($name, $words) = @$c;
	my $m = CrateSync::Mirror->new($node, 'standin', standin => [ '--tls', "$dir/$name.crt", "$dir/$name.key" ]);
	$m->{compare_options} = [ '--no-verify' ];
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)');
	$m->sql('SET client_min_messages = error; SELECT crate_sync.add_table(\'t\')');
	if ($name eq 'good')
	{
		$m->equal('t', 'a certificate of our CA');
	}
	else
	{
		refused($m, $words, "certificate: $name");
		is($m->standin->control->{requests}, 0, "certificate: $name: nothing was sent");
		set(ssl_verify => 'off');
		$m->equal('t', "certificate: $name: not checked when told so");
		set(ssl_verify => 'on');
	}
	# without the CA even the good one is refused
	if ($name eq 'good')
	{
		set(ssl_ca_file => '');
		$m->kill_worker('TERM');
		refused($m, qr/certificate|issuer/i, 'unknown CA');
		set(ssl_ca_file => "$dir/nosuch.crt");
		$m->kill_worker('TERM');
		refused($m, qr/nosuch|certificate|CA/i, 'no CA file');
		set(ssl_ca_file => "$dir/ca.crt");
		$m->equal('t', 'the CA again');
	}
	$m->finish;
}

# --- a plain port where TLS was expected, and the other way round
{
	my $plain = CrateSync::Standin->new;
	(my $url = $plain->url) =~ s/http:/https:/;
	$url =~ s/127\.0\.0\.1/localhost/;
	my $m = CrateSync::Mirror->new($node, 'standin', url => $url);
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); SET client_min_messages = error; SELECT crate_sync.add_table(\'t\'); INSERT INTO t VALUES (1)');
	refused($m, qr/./, 'TLS towards a plain port');
	$m->finish;
	$plain->stop;
	my $tls = CrateSync::Standin->new('--tls', "$dir/good.crt", "$dir/good.key");
	($url = $tls->url) =~ s/https:/http:/;
	$m = CrateSync::Mirror->new($node, 'standin', url => $url);
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); SET client_min_messages = error; SELECT crate_sync.add_table(\'t\'); INSERT INTO t VALUES (1)');
	refused($m, qr/./, 'plain HTTP towards a TLS port');
	$m->finish;
	$tls->stop;
}

# --- user and password
{
	my $file = put('password', "$secret\n", 0600);
	set(user => 'mirror', password_file => $file);
	my $m = CrateSync::Mirror->new($node, 'standin', standin => [ '--user', 'mirror', $secret ]);
	my $s = $m->standin;
	my $ask = sub { my $n = shift; $s->control(user => undef); my $v = $m->target_count($n); $s->control(user => [ 'mirror', $secret ]); return $v };
	$m->sql('CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100); SELECT crate_sync.add_table(\'t\')');
	ok($m->wait_sync, 'with user and password');
	is($ask->('t'), 100, 'rows are there');

	# the password is changed at the target
	$s->control(user => [ 'mirror', 'changed' ]);
	refused($m, qr/401|auth|password/i, 'wrong password');
	like($m->status('state'), qr/refuses/, 'the target refuses');
	like($m->status('hint'), qr/password/, 'the hint names the password');
	put('password', 'changed', 0600);
	$node->reload;
	ok($m->wait_sync, 'the new password, after a reload');
	put('password', "$secret\n", 0600);
	$s->control(user => [ 'mirror', $secret ]);
	$node->reload;
	$m->sql('INSERT INTO t VALUES (5001)');
	ok($m->wait_sync, 'the old password again');

	# a file that others may read, and none at all
	chmod 0644, $file;
	$m->kill_worker('TERM');
	refused($m, qr/password|permission|mode|read/i, 'a password file that others may read');
	chmod 0600, $file;
	ok($m->wait_sync, 'readable by its owner only');
	set(password_file => "$dir/nosuch");
	$m->kill_worker('TERM');
	refused($m, qr/nosuch|password/i, 'no password file');
	set(password_file => $file);
	ok($m->wait_sync, 'the file is there');

	# --- no secret anywhere
	$s->fault({ match => 'INSERT INTO', error => [ 4011, 'MissingPrivilegeException[Missing privilege for mirror]', 401 ], times => 2 },
		{ match => 'INSERT INTO', cut => 'middle', skip => 2, times => 2 });
	$m->sql('INSERT INTO t VALUES (6000)');
	$m->poll('SELECT last_error IS NOT NULL FROM crate_sync.status', 't', 10);
	ok($m->wait_sync, 'after errors');
	my $encoded = do { require MIME::Base64; MIME::Base64::encode_base64("mirror:$secret", '') };
	my $log = PostgreSQL::Test::Utils::slurp_file($node->logfile);
	my $seen = $m->sql(<<'EOQ');
SELECT * FROM crate_sync.status; SELECT * FROM crate_sync.tables; SELECT * FROM crate_sync.failed_rows;
SELECT * FROM crate_sync.mirror; SELECT * FROM crate_sync.mirror_state; SELECT * FROM crate_sync.worker_state; SELECT * FROM crate_sync.worker_status();
SELECT * FROM pg_settings WHERE name LIKE 'crate_sync%'; SELECT * FROM pg_stat_activity;
EOQ
	my ($dump, $err) = ('', '');
	IPC::Run::run([ 'pg_dump', '-d', $node->connstr($m->db) ], '>', \$dump, '2>', \$err) or diag $err;
	like($dump, qr/CREATE EXTENSION.*crate_sync/, 'a dump');
	foreach my $text ([ 'log', $log ], [ 'views', $seen ], [ 'dump', $dump ])
	{
		is(index($text->[1], 's3cret'), -1, "no password in the $text->[0]");
		is(index($text->[1], $encoded), -1, "nor its encoded form in the $text->[0]");
	}
	my $ps = `ps axww -o args`;
	is(index($ps, 's3cret') >= 0 && (grep { /s3cret/ && !/cratedb\.py/ } split /\n/, $ps) ? 1 : 0, 0, 'nor in the list of processes');
	$m->finish;
}

$node->stop;
done_testing();
