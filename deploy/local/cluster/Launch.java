import de.bwaldvogel.mongo.MongoCollection;
import de.bwaldvogel.mongo.MongoDatabase;
import de.bwaldvogel.mongo.MongoServer;
import de.bwaldvogel.mongo.MongoVersion;
import de.bwaldvogel.mongo.backend.ArrayFilters;
import de.bwaldvogel.mongo.backend.CollectionOptions;
import de.bwaldvogel.mongo.backend.CursorRegistry;
import de.bwaldvogel.mongo.backend.Index;
import de.bwaldvogel.mongo.backend.IndexKey;
import de.bwaldvogel.mongo.backend.QueryResult;
import de.bwaldvogel.mongo.backend.Utils;
import de.bwaldvogel.mongo.backend.h2.H2Backend;
import de.bwaldvogel.mongo.backend.h2.H2Collection;
import de.bwaldvogel.mongo.backend.h2.H2Database;
import de.bwaldvogel.mongo.bson.Document;
import de.bwaldvogel.mongo.oplog.Oplog;
import java.util.ArrayList;
import java.util.List;
import java.util.function.Supplier;
import org.h2.mvstore.MVMap;
import org.h2.mvstore.MVStore;

/**
 * Serves MongoDB's wire protocol from one H2 file: `java -cp 'libs/*' Launch.java PORT FILE`. Stops cleanly on SIGTERM.
 *
 * The library ignores `partialFilterExpression`. Instead, an index whose name ends in `_if_FIELD` covers only the
 * documents in which FIELD is a string, as such an expression does in MongoDB.
 *
 * The library updates a stored document field by field while other threads may read it and H2 may write it to the file.
 * Here an update changes a copy and then replaces the document, so that readers see the whole update or none.
 */
public class Launch {
    private static final int COMMIT_DELAY_MS = 50;
    private static final String PARTIAL = "_if_";

    public static void main(String[] args) {
        // The delay limits what a crash of this server can lose: the library does not commit after each write.
        MVStore store = new MVStore.Builder().fileName(args[1]).open();
        store.setAutoCommitDelay(COMMIT_DELAY_MS);
        H2Backend backend = new Backend(store);
        backend.version(new MongoVersion() {
            // Current clients refuse the library's default wire version.
            public List<Integer> getVersionArray() {
                return List.of(5, 0, 0);
            }

            public int getWireVersion() {
                return 13;
            }
        });
        MongoServer server = new MongoServer(backend);
        server.bind("127.0.0.1", Integer.parseInt(args[0]));
        Runtime.getRuntime().addShutdownHook(new Thread(server::shutdownNow));
    }

    static class Backend extends H2Backend {
        Backend(MVStore store) {
            super(store);
        }

        protected MongoDatabase openOrCreateDatabase(String name) {
            return new Database(name);
        }

        /** An inner class, because H2Database's constructor opens collections before fields of this class are set. */
        class Database extends H2Database {
            Database(String name) {
                super(name, getMvStore(), getCursorRegistry());
            }

            protected MongoCollection<Object> openOrCreateCollection(String name, CollectionOptions options) {
                String in = getDatabaseName() + "." + name;
                MVMap<Object, Document> documents = getMvStore().openMap("databases." + in);
                MVMap<String, Object> meta = getMvStore().openMap("meta." + in);
                return new CopyOnWriteCollection(this, name, options, documents, meta, cursorRegistry);
            }

            protected Index<Object> openOrCreateUniqueIndex(
                    String in, String name, List<IndexKey> keys, boolean sparse) {
                Index<Object> whole = super.openOrCreateUniqueIndex(in, name, keys, sparse);
                int at = name.lastIndexOf(PARTIAL);
                return at < 0 ? whole : new PartialIndex(whole, keys, name.substring(at + PARTIAL.length()));
            }
        }
    }

    /**
     * Passes copies of documents to updates; the library then replaces each document by its changed copy.
     *
     * A query with an `_id` finds the document by it, as in MongoDB. The library does so only when the query has no other
     * field, and otherwise reads the whole collection.
     */
    static class CopyOnWriteCollection extends H2Collection {
        private boolean updating; // guarded by this collection's monitor, like all updates

        CopyOnWriteCollection(
                MongoDatabase in, String name, CollectionOptions options, MVMap<Object, Document> documents,
                MVMap<String, Object> meta, CursorRegistry cursors) {
            super(in, name, options, documents, meta, cursors);
        }

        public synchronized Document updateDocuments(
                Document selector, Document update, ArrayFilters filters, boolean multi, boolean upsert, Oplog oplog) {
            return whileUpdating(() -> super.updateDocuments(selector, update, filters, multi, upsert, oplog));
        }

        public synchronized Document findAndModify(Document query) {
            return whileUpdating(() -> super.findAndModify(query));
        }

        private Document whileUpdating(Supplier<Document> change) {
            updating = true;
            try {
                return change.get();
            } finally {
                updating = false;
            }
        }

        protected QueryResult queryDocuments(
                Document query, Document order, int skip, int limit, int batchSize, Document fields) {
            QueryResult found = query.get("_id") instanceof String id
                    ? matchDocuments(query, positions(id), order, skip, limit, batchSize, fields)
                    : super.queryDocuments(query, order, skip, limit, batchSize, fields);
            if (!updating) {
                return found;
            }
            List<Document> copies = new ArrayList<>();
            found.forEach(document -> copies.add(document.clone()));
            return new QueryResult(copies);
        }

        private List<Object> positions(String id) {
            return getDocument(id) == null ? List.of() : List.of(id);
        }
    }

    /** Passes only covered documents to the underlying index. */
    static class PartialIndex extends Index<Object> {
        private final Index<Object> covered;
        private final String field;

        PartialIndex(Index<Object> covered, List<IndexKey> keys, String field) {
            super(covered.getName(), keys, true); // sparse: an uncovered document is not an error
            this.covered = covered;
            this.field = field;
        }

        private boolean covers(Document document) {
            return Utils.getSubdocumentValue(document, field) instanceof String;
        }

        public Object getPosition(Document document) {
            return covers(document) ? covered.getPosition(document) : null;
        }

        public synchronized void checkAdd(Document document, MongoCollection<Object> collection) {
            if (covers(document)) {
                covered.checkAdd(document, collection);
            }
        }

        public synchronized void add(Document document, Object position, MongoCollection<Object> collection) {
            if (covers(document)) {
                covered.add(document, position, collection);
            }
        }

        public synchronized Object remove(Document document) {
            return covers(document) ? covered.remove(document) : null;
        }

        public synchronized void checkUpdate(Document before, Document after, MongoCollection<Object> collection) {
            if (covers(before) && covers(after)) {
                covered.checkUpdate(before, after, collection);
            } else {
                checkAdd(after, collection);
            }
        }

        public synchronized void updateInPlace(
                Document before, Document after, Object position, MongoCollection<Object> collection) {
            if (covers(before) && covers(after)) {
                covered.updateInPlace(before, after, position, collection);
            } else {
                remove(before);
                add(after, position, collection);
            }
        }

        public synchronized boolean canHandle(Document query) {
            return query.get(field) instanceof String && covered.canHandle(query);
        }

        public synchronized Iterable<Object> getPositions(Document query) {
            return covered.getPositions(query);
        }

        public long getCount() {
            return covered.getCount();
        }

        public long getDataSize() {
            return covered.getDataSize();
        }

        public boolean isUnique() {
            return true;
        }

        public void drop() {
            covered.drop();
        }
    }
}
