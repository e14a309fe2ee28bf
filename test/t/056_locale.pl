# Money as the user's locale writes it: a filter means to the worker what it meant when it was given.
use strict;
use warnings;
use CrateSync;
use Test::More;

my $locale = 'de_DE.utf8';
my $path = "$ENV{TESTDATADIR}/locale";
if (!grep { /^\Q$locale\E$/i } split /\n/, `locale -a`)
{
	mkdir $ENV{TESTDATADIR};
	mkdir $path;
	# a place of the test's own: its server looks for locales there
	if (system("localedef -i de_DE -f UTF-8 $path/$locale >/dev/null 2>&1") >> 8 > 1 || !-d "$path/$locale")
	{
		plan skip_all => "there is no locale $locale, and none can be made";
	}
	$ENV{LOCPATH} = $path;
}

my $node = CrateSync::server('locale');

CrateSync::on_targets($node, sub {
	my ($m) = @_;
	$m->sql(q{CREATE TABLE prices (id int PRIMARY KEY, price money);
		INSERT INTO prices SELECT i, (i + 0.5)::numeric::money FROM generate_series(1, 10) i});
	is($m->sql(qq{SET lc_monetary = '$locale'; SELECT '5,50'::money::numeric}), '5.50', 'the locale has a comma');
	$m->sql(qq{SET lc_monetary = '$locale'; SELECT crate_sync.add_table('prices', row_filter => 'price > ''5,50''::money')});
	ok($m->wait_sync, 'the table is loaded');
	is($m->sql(q{SELECT state || coalesce(last_error, '') FROM crate_sync.tables WHERE relname = 'prices'}), 'ready', '... without an error');
	is($m->target_value(q{SELECT count(*) FROM {prices}}), 5, '... with the rows that cost more than that');
	$m->sql(q{UPDATE prices SET price = 5.5::numeric::money WHERE id = 6; UPDATE prices SET price = 5.51::numeric::money WHERE id = 1});
	ok($m->wait_sync, 'changes arrive');
	is($m->target_value(q{SELECT sum(id) FROM {prices}}), 1 + 7 + 8 + 9 + 10, '... of rows that match');
	my $there = $m->target_table('prices');
	$there =~ s/'/''/g;
	is($m->sql(qq{SET lc_monetary = '$locale'; SELECT rows_match FROM crate_sync.benchmark('SELECT id, price FROM prices WHERE id > 6 ORDER BY id',
		'SELECT id, price FROM $there WHERE id > 6 ORDER BY id', 1, 0)}), 't', 'benchmark() finds equal prices equal');
});

done_testing();
